"""Executors: each renders jobs for one kind of place, submits them there and tells what became of them.

`EXECUTORS` is the one list of them; packages add theirs with entry points of the group `nemorun.executors`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

from nemorun.errors import DiscoveryError, did_you_mean

if TYPE_CHECKING:
    from nemorun.executors.base import Executor

#: Kind -> `module:class`.
EXECUTORS: dict[str, str] = {
    "local": "nemorun.executors.local:LocalExecutor",
    "slurm": "nemorun.executors.slurm:SlurmExecutor",
    "kubernetes": "nemorun.executors.kubernetes:KubernetesExecutor",
}


def executor_class(kind: str) -> type[Executor]:
    """The executor class of that kind. Raises DiscoveryError with the nearest name where there is none."""
    path = EXECUTORS.get(kind)
    if path is None:
        from importlib.metadata import entry_points

        installed = {point.name: point.value for point in entry_points(group="nemorun.executors")}
        path = installed.get(kind)
        if path is None:
            known = sorted({*EXECUTORS, *installed})
            nearest = did_you_mean(kind, known)
            raise DiscoveryError(f"no executor is of type {kind!r}; known are {', '.join(known)}{nearest}")
    module, _, name = path.partition(":")
    return cast("type[Executor]", getattr(importlib.import_module(module), name))
