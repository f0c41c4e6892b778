"""Suspends tasks and lets them go on: by `suspend` of their workload, which is what all its kinds understand.

Who starts a workload may be another: Kueue, if it is in a queue, and then that is told; or nobody yet, if it
waits for other tasks. An annotation says that a user has suspended it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from nemorun.errors import SubmitError
from nemorun.executors.kubernetes.api import KUEUE_VERSIONS, Api, Object, api_of, path_of
from nemorun.executors.kubernetes.names import object_name
from nemorun.executors.kubernetes.refusals import NotFound
from nemorun.executors.kubernetes.workloads import (
    KINDS,
    finished,
    kind_of,
    queue_of,
    switched,
    waits_for,
    with_hold,
)
from nemorun.job import JobRef

if TYPE_CHECKING:
    from nemorun.executors.kubernetes.executor import KubernetesExecutor


def suspend(executor: KubernetesExecutor, refs: Sequence[JobRef]) -> None:
    """Raises ApiError, or SubmitError where a task is not there."""
    for api, path, workload in _workloads(executor, refs):
        queue = queue_of(workload)
        if queue and not _tell_kueue(api, workload, active=False):
            raise SubmitError(
                f"Kueue has no Workload of {workload['kind']} '{workload['metadata']['name']}' in queue "
                f"'{queue}' yet, and that is what would be suspended; try again in a moment, or look whether "
                "Kueue runs"
            )
        change: Object = {} if queue or waits_for(workload) else switched(workload, True)
        api.patch(path, with_hold(change, True))


def resume(executor: KubernetesExecutor, refs: Sequence[JobRef]) -> None:
    """Raises ApiError, or SubmitError where a task is not there."""
    for api, path, workload in _workloads(executor, refs):
        queue = queue_of(workload)
        if queue:
            _tell_kueue(api, workload, active=True)
        change: Object = {} if queue or waits_for(workload) else switched(workload, False)
        api.patch(path, with_hold(change, False))


def _workloads(executor: KubernetesExecutor, refs: Sequence[JobRef]) -> list[tuple[Api, str, Object]]:
    """Those that have not ended, all found before anything is changed."""
    api, found = api_of(executor), []
    for ref in refs:
        version, kind = KINDS[kind_of(ref, executor.kind)]
        path = api.path(kind, object_name(ref.token), version)
        workload = api.find(path)
        if workload is None or "deletionTimestamp" in workload["metadata"]:
            raise SubmitError(
                f"task '{ref.name}': namespace '{api.namespace}' has no {kind} '{object_name(ref.token)}' "
                "any more; `nemorun status` tells what became of it"
            )
        if not finished(workload):
            found.append((api, path, workload))
    return found


def _tell_kueue(api: Api, workload: Object, active: bool) -> bool:
    """Kueue starts again what somebody else has suspended; its own object of the task says that it must not.

    False where it has none.
    """
    uid = workload["metadata"]["uid"]
    for version in KUEUE_VERSIONS:
        path = path_of(version, "Workload", api.namespace)
        with suppress(NotFound):
            for one in api.get(path, labelSelector=f"kueue.x-k8s.io/job-uid={uid}")["items"]:
                api.patch(f"{path}/{one['metadata']['name']}", {"spec": {"active": active}})
                return True
    return False
