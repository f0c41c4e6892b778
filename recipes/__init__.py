"""Bundled recipes: factories only, one small module a model family. Names are loaded at first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemorun.lazy import lazily

if TYPE_CHECKING:
    from nemorun.recipes.llama3 import (
        llama3_8b_finetune,
        llama3_8b_pretrain,
        llama3_70b_finetune,
        llama3_70b_pretrain,
    )
    from nemorun.recipes.mistral import mistral_7b_finetune, mistral_7b_pretrain
    from nemorun.recipes.mixtral import mixtral_8x7b, mixtral_8x7b_finetune
    from nemorun.recipes.nemotron import (
        nemotron_4_15b,
        nemotron_4_15b_finetune,
        nemotron_4_340b,
        nemotron_4_340b_finetune,
    )
    from nemorun.recipes.tiny import tiny_llama_pretrain

__all__ = [
    "llama3_8b_finetune",
    "llama3_8b_pretrain",
    "llama3_70b_finetune",
    "llama3_70b_pretrain",
    "mistral_7b_finetune",
    "mistral_7b_pretrain",
    "mixtral_8x7b",
    "mixtral_8x7b_finetune",
    "nemotron_4_15b",
    "nemotron_4_15b_finetune",
    "nemotron_4_340b",
    "nemotron_4_340b_finetune",
    "tiny_llama_pretrain",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        ".llama3": ("llama3_8b_finetune", "llama3_8b_pretrain", "llama3_70b_finetune", "llama3_70b_pretrain"),
        ".mistral": ("mistral_7b_finetune", "mistral_7b_pretrain"),
        ".mixtral": ("mixtral_8x7b", "mixtral_8x7b_finetune"),
        ".nemotron": (
            "nemotron_4_15b",
            "nemotron_4_15b_finetune",
            "nemotron_4_340b",
            "nemotron_4_340b_finetune",
        ),
        ".tiny": ("tiny_llama_pretrain",),
    },
)
