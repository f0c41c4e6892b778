"""Runs jobs on this machine: one supervisor process an experiment, ranks as torchrun would start them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemorun.lazy import lazily

if TYPE_CHECKING:
    from nemorun.executors.local.executor import LocalExecutor

__all__ = ["LocalExecutor"]

__all__ = [
    "LocalExecutor",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        ".executor": ("LocalExecutor",),
    },
)
