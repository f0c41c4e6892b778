"""Language models: configuration, the transformer, its data, pre-training. Importing it imports no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_NAMES = {
    "DataConfig": "nemorun.llm.config",
    "GPTConfig": "nemorun.llm.config",
    "GPTModel": "nemorun.llm.model",
    "TextData": "nemorun.llm.data",
    "generate": "nemorun.llm.generation",
    "pretrain": "nemorun.llm.pretraining",
}
__all__ = [
    "DataConfig",
    "GPTConfig",
    "GPTModel",
    "TextData",
    "generate",
    "pretrain",
]

if TYPE_CHECKING:
    from nemorun.llm.config import DataConfig, GPTConfig
    from nemorun.llm.data import TextData
    from nemorun.llm.generation import generate
    from nemorun.llm.model import GPTModel
    from nemorun.llm.pretraining import pretrain


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'nemorun.llm' has no attribute {name!r}")
    value = getattr(importlib.import_module(_NAMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
