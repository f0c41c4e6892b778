"""Bundled recipes: factories only, one small module a model family. Names are loaded at first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_NAMES = {"tiny_llama_pretrain": "nemorun.recipes.tiny"}
__all__ = ["tiny_llama_pretrain"]

if TYPE_CHECKING:
    from nemorun.recipes.tiny import tiny_llama_pretrain


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'nemorun.recipes' has no attribute {name!r}")
    value = getattr(importlib.import_module(_NAMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
