"""The training core: torch distributed, small enough to read. Importing it does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemorun.lazy import lazily

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

__all__ = [
    "CheckpointConfig",
    "LogConfig",
    "OptimConfig",
    "ParallelismConfig",
    "Trainer",
    "TrainerConfig",
    "TrainingError",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        ".config": ("CheckpointConfig", "LogConfig", "OptimConfig", "ParallelismConfig", "TrainerConfig"),
        ".errors": ("TrainingError",),
        ".trainer": ("Trainer",),
    },
)
