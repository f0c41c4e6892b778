"""Renders jobs to the scripts that sbatch gets. Pure: the same jobs give the same text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nemorun.executors.base import Rendered
from nemorun.executors.slurm.executor import SlurmExecutor
from nemorun.job import JobSpec


@dataclass(frozen=True)
class Unit:
    """What one call of sbatch submits: a task, or equal tasks as an array."""

    name: str
    """The task's name, or `array-N`."""
    script: str
    """Complete."""
    tasks: tuple[str, ...]
    """One task, or an array's in the order of its indices."""
    after: tuple[str, ...] = ()
    """Names of the tasks that must have succeeded first."""
    limit: int | None = None
    """How many of an array run at once."""


@dataclass(frozen=True)
class SlurmRendered(Rendered):
    units: tuple[Unit, ...] = ()


def render(jobs: Sequence[tuple[SlurmExecutor, JobSpec]]) -> SlurmRendered:
    units = tuple(Unit(job.name, "", (job.name,), job.dependencies) for _, job in jobs)
    return SlurmRendered(
        "slurm", "\n".join(unit.script for unit in units), tuple(job for _, job in jobs), units
    )
