"""Runs jobs on a Slurm cluster: over SSH, or from its login node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemorun.lazy import lazily

if TYPE_CHECKING:
    from nemorun.executors.slurm.executor import HetGroup, SlurmExecutor

__all__ = [
    "HetGroup",
    "SlurmExecutor",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        ".executor": ("HetGroup", "SlurmExecutor"),
    },
)
