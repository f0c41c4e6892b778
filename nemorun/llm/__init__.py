"""Language models: configuration, the transformer, its data, pre-training. Importing it imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemorun.lazy import lazily

if TYPE_CHECKING:
    from nemorun.llm.config import DataConfig, GPTConfig
    from nemorun.llm.data import TextData
    from nemorun.llm.generation import generate
    from nemorun.llm.model import GPTModel
    from nemorun.llm.pretraining import pretrain

__all__ = [
    "DataConfig",
    "GPTConfig",
    "GPTModel",
    "TextData",
    "generate",
    "pretrain",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        ".config": ("DataConfig", "GPTConfig"),
        ".data": ("TextData",),
        ".generation": ("generate",),
        ".model": ("GPTModel",),
        ".pretraining": ("pretrain",),
    },
)
