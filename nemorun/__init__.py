"""nemorun: launch experiments on this machine, on Slurm and on Kubernetes; `import nemorun as run`.

Names are loaded at first use, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemorun import cli
from nemorun.lazy import lazily

if TYPE_CHECKING:
    from nemorun.config import Config, Partial, factory, resources
    from nemorun.errors import NemorunError, TaskFailed
    from nemorun.executors.kubernetes import KubernetesExecutor
    from nemorun.executors.local import LocalExecutor
    from nemorun.executors.slurm import HetGroup, SlurmExecutor
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

__version__ = "0.1.0"
__all__ = [
    "Command",
    "Config",
    "Experiment",
    "HetGroup",
    "KubernetesExecutor",
    "LocalExecutor",
    "NemorunError",
    "Partial",
    "Plugin",
    "Resources",
    "Result",
    "Script",
    "SlurmExecutor",
    "TaskFailed",
    "__version__",
    "cli",
    "factory",
    "get_git_commit",
    "resources",
    "run",
    "set_seed",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        ".config": ("Config", "Partial", "factory", "resources"),
        ".errors": ("NemorunError", "TaskFailed"),
        ".executors.kubernetes": ("KubernetesExecutor",),
        ".executors.local": ("LocalExecutor",),
        ".executors.slurm": ("HetGroup", "SlurmExecutor"),
        ".experiment": (
            "Command",
            "Experiment",
            "Plugin",
            "Result",
            "Script",
            "get_git_commit",
            "run",
            "set_seed",
        ),
        ".job": ("Resources",),
    },
)
