"""nemorun: launch experiments on this machine, on Slurm and on Kubernetes; `import nemorun as run`.

Names are loaded at first use, so that importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_NAMES = {
    "Config": "nemorun.config",
    "Partial": "nemorun.config",
    "Resources": "nemorun.job",
    "factory": "nemorun.config",
    "resources": "nemorun.config",
    "cli": "nemorun.cli",
    "LocalExecutor": "nemorun.executors.local",
    "Command": "nemorun.experiment",
    "Script": "nemorun.experiment",
    "Experiment": "nemorun.experiment",
    "Plugin": "nemorun.experiment",
    "Result": "nemorun.experiment",
    "run": "nemorun.experiment",
    "set_seed": "nemorun.experiment",
    "get_git_commit": "nemorun.experiment",
    "NemorunError": "nemorun.errors",
    "TaskFailed": "nemorun.errors",
}
__all__ = ["__version__", *_NAMES]

if TYPE_CHECKING:
    from nemorun import cli as cli
    from nemorun.config import Config, Partial, factory, resources
    from nemorun.errors import NemorunError, TaskFailed
    from nemorun.executors.local import LocalExecutor
    from nemorun.experiment import (
        Command,
        Experiment,
        Plugin,
        Result,
        Script,
        get_git_commit,
        run,
        set_seed,
    )
    from nemorun.job import Resources


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'nemorun' has no attribute {name!r}")
    module = importlib.import_module(_NAMES[name])
    value = module if name == "cli" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
