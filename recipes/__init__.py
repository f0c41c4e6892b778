"""Bundled recipes: factories only, one small module a model family. Names are loaded at first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemorun.lazy import lazily

if TYPE_CHECKING:
    from nemorun.recipes.tiny import tiny_llama_pretrain

__all__ = [
    "tiny_llama_pretrain",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        ".tiny": ("tiny_llama_pretrain",),
    },
)
