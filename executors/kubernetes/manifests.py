"""Renders jobs to the objects that the API server gets. Pure: the same jobs give the same text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nemorun.executors.base import Rendered
from nemorun.job import JobSpec

if TYPE_CHECKING:
    from nemorun.executors.kubernetes.executor import KubernetesExecutor

#: An object as the API server takes it.
Manifest = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One task's objects, in the order in which they are created."""

    name: str
    objects: tuple[Manifest, ...]
    """The workload comes last: what it needs is there before."""

    @property
    def workload(self) -> Manifest:
        return self.objects[-1]


@dataclass(frozen=True)
class KubernetesRendered(Rendered):
    """`text` is all of it as YAML documents, as `kubectl apply -f` takes them: the parent first.

    What is sent besides: the owner (the parent's uid), the archives of the code and of nemorun itself, and
    the values of secrets, which only the submission knows.
    """

    parent: Manifest
    """The ConfigMap that owns all else."""
    tasks: tuple[Task, ...]


def render(jobs: Sequence[tuple[KubernetesExecutor, JobSpec]]) -> KubernetesRendered:
    raise NotImplementedError
