"""Experiments: tasks that are frozen, recorded, launched and looked after together.

Names are loaded at first use, so that a task which only sets a seed does not load the launcher.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemorun.lazy import lazily

if TYPE_CHECKING:
    from nemorun.experiment.experiment import Experiment, run
    from nemorun.experiment.plugins import Plugin
    from nemorun.experiment.provenance import get_git_commit
    from nemorun.experiment.record import (
        Record,
        Result,
        TaskResult,
        records,
    )
    from nemorun.experiment.replay import diff, rerun
    from nemorun.experiment.seed import set_seed
    from nemorun.experiment.tasks import Command, Script, TaskRef

__all__ = [
    "Command",
    "Experiment",
    "Plugin",
    "Record",
    "Result",
    "Script",
    "TaskRef",
    "TaskResult",
    "diff",
    "get_git_commit",
    "records",
    "rerun",
    "run",
    "set_seed",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        ".experiment": ("Experiment", "run"),
        ".plugins": ("Plugin",),
        ".provenance": ("get_git_commit",),
        ".record": ("Record", "Result", "TaskResult", "records"),
        ".replay": ("diff", "rerun"),
        ".seed": ("set_seed",),
        ".tasks": ("Command", "Script", "TaskRef"),
    },
)
