"""Language models: configuration, data, the transformer, training, text. Importing it imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemorun.lazy import lazily

if TYPE_CHECKING:
    from nemorun.llm.config import GPTConfig
    from nemorun.llm.data.config import DataConfig, FinetuneDataConfig
    from nemorun.llm.data.finetune import FinetuneData
    from nemorun.llm.data.pretrain import PretrainData
    from nemorun.llm.finetuning import finetune
    from nemorun.llm.generation import Generator, generate
    from nemorun.llm.model import GPTModel
    from nemorun.llm.pretraining import pretrain

__all__ = [
    "DataConfig",
    "FinetuneData",
    "FinetuneDataConfig",
    "GPTConfig",
    "GPTModel",
    "Generator",
    "PretrainData",
    "finetune",
    "generate",
    "pretrain",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        ".config": ("GPTConfig",),
        ".data": ("DataConfig", "FinetuneData", "FinetuneDataConfig", "PretrainData"),
        ".finetuning": ("finetune",),
        ".generation": ("Generator", "generate"),
        ".model": ("GPTModel",),
        ".pretraining": ("pretrain",),
    },
)
