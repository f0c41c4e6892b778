"""The training core: torch distributed, small enough to read. Importing it does not import torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_NAMES = {
    "CheckpointConfig": "nemorun.training.config",
    "LogConfig": "nemorun.training.config",
    "OptimConfig": "nemorun.training.config",
    "ParallelismConfig": "nemorun.training.config",
    "TrainerConfig": "nemorun.training.config",
    "TrainingError": "nemorun.training.errors",
    "Trainer": "nemorun.training.trainer",
}
__all__ = [
    "CheckpointConfig",
    "LogConfig",
    "OptimConfig",
    "ParallelismConfig",
    "Trainer",
    "TrainerConfig",
    "TrainingError",
]

if TYPE_CHECKING:
    from nemorun.training.config import (
        CheckpointConfig,
        LogConfig,
        OptimConfig,
        ParallelismConfig,
        TrainerConfig,
    )
    from nemorun.training.errors import TrainingError
    from nemorun.training.trainer import Trainer


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'nemorun.training' has no attribute {name!r}")
    value = getattr(importlib.import_module(_NAMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
