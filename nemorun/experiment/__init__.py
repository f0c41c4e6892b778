"""Experiments: tasks that are frozen, recorded, launched and looked after together.

Names are loaded at first use, so that a task which only sets a seed does not load the launcher.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_MODULES = {
    "experiment": ("Experiment", "run"),
    "plugins": ("Plugin",),
    "provenance": ("get_git_commit",),
    "record": ("Record", "Result", "TaskResult", "records"),
    "replay": ("diff", "rerun"),
    "seed": ("set_seed",),
    "tasks": ("Command", "Script", "TaskRef"),
}
_HOME = {name: f"nemorun.experiment.{module}" for module, names in _MODULES.items() for name in names}
__all__ = list(_HOME)

if TYPE_CHECKING:
    from nemorun.experiment.experiment import Experiment as Experiment
    from nemorun.experiment.experiment import run as run
    from nemorun.experiment.plugins import Plugin as Plugin
    from nemorun.experiment.provenance import get_git_commit as get_git_commit
    from nemorun.experiment.record import (
        Record as Record,
    )
    from nemorun.experiment.record import (
        Result as Result,
    )
    from nemorun.experiment.record import (
        TaskResult as TaskResult,
    )
    from nemorun.experiment.record import (
        records as records,
    )
    from nemorun.experiment.replay import diff as diff
    from nemorun.experiment.replay import rerun as rerun
    from nemorun.experiment.seed import set_seed as set_seed
    from nemorun.experiment.tasks import Command as Command
    from nemorun.experiment.tasks import Script as Script
    from nemorun.experiment.tasks import TaskRef as TaskRef


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'nemorun.experiment' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value
