"""Cancels tasks: deletes what is theirs on the cluster, and leaves word of it here, for who asks later."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nemorun.errors import StoreError
from nemorun.executors.kubernetes.api import Api, Object, api_of
from nemorun.executors.kubernetes.names import EXPERIMENT_LABEL, experiment_id, object_name, parent_name
from nemorun.executors.kubernetes.refusals import ApiError, NotFound
from nemorun.executors.kubernetes.workloads import KINDS, kind_of
from nemorun.job import JobRef

if TYPE_CHECKING:
    from nemorun.executors.kubernetes.executor import KubernetesExecutor

#: A file of the task's run folder here: its cancellation was ordered.
MARK = "cancelled"
#: Seconds for which the cluster may take to act on the order.
_PATIENCE = 15.0
#: Seconds that its garbage collector has of these.
_COLLECTION = 2.0


def was_cancelled(ref: JobRef) -> bool:
    """Was its cancellation ordered from here?"""
    return Path(ref.run_dir, MARK).exists()


def cancel(executor: KubernetesExecutor, refs: Sequence[JobRef]) -> None:
    """Delete the tasks' objects; the cluster stops their pods. Returns when it has taken the order.

    Where all tasks of a submission are meant, its parent goes, and all else with it.
    """
    api = api_of(executor)
    for ref in refs:
        _mark(ref)
    groups: dict[str, list[JobRef]] = {}
    for ref in refs:
        groups.setdefault(parent_name(ref), []).append(ref)
    for parent, group in groups.items():
        if _all_of_it(group):
            api.delete(api.path("ConfigMap", parent))
        else:
            for ref in group:
                _delete_one(api, executor, ref)
    _wait_until_taken(api, executor, refs)


def _mark(ref: JobRef) -> None:
    """First: what is seen to be gone must be known to have been cancelled."""
    try:
        Path(ref.run_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
        Path(ref.run_dir, MARK).touch(mode=0o600)
    except OSError as error:
        raise StoreError(
            f"{ref.run_dir} cannot be written ({error.strerror}); nothing was cancelled"
        ) from None


def _all_of_it(refs: Sequence[JobRef]) -> bool:
    """Are these all tasks of their submission? Its record says so: a folder for each."""
    folder = Path(refs[0].run_dir).parent
    return {one.name for one in folder.iterdir() if one.is_dir()} <= {ref.name for ref in refs}


def _delete_one(api: Api, executor: KubernetesExecutor, ref: JobRef) -> None:
    """What the other tasks need stays."""
    name = object_name(ref.token)
    version, kind = KINDS[kind_of(ref, executor.kind)]
    for path in (api.path(kind, name, version), api.path("Secret", name), api.path("Service", name)):
        api.delete(path)


def _wait_until_taken(api: Api, executor: KubernetesExecutor, refs: Sequence[JobRef]) -> None:
    """Until no workload of theirs is there that is not being deleted: the rest follows it.

    The cluster's garbage collector may sleep, for half a minute after a restart of the API server: then the
    tasks' objects are deleted one by one. Raises ApiError where even that does not help.
    """
    give_up = time.monotonic() + _PATIENCE
    while left := _living(api, executor, refs):
        if time.monotonic() > give_up:
            names = ", ".join(ref.name for ref in left)
            raise ApiError(f"the cluster was told to delete {names}, but they are still there; cancel again")
        if time.monotonic() > give_up - _PATIENCE + _COLLECTION:
            for ref in left:
                _delete_one(api, executor, ref)
        time.sleep(0.1)


def _living(api: Api, executor: KubernetesExecutor, refs: Sequence[JobRef]) -> list[JobRef]:
    experiments = ",".join(sorted({experiment_id(ref.token) for ref in refs}))
    there: set[tuple[str, str]] = set()
    for one in {kind_of(ref, executor.kind) for ref in refs}:
        version, kind = KINDS[one]
        path = api.path(kind, api_version=version)
        with suppress(NotFound):  # not even its kind
            listed = api.get(path, labelSelector=f"{EXPERIMENT_LABEL} in ({experiments})")["items"]
            there.update((one, workload["metadata"]["name"]) for workload in listed if _lives(workload))
    return [ref for ref in refs if (kind_of(ref, executor.kind), object_name(ref.token)) in there]


def _lives(workload: Object) -> bool:
    return "deletionTimestamp" not in workload["metadata"]
