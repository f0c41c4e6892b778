"""Tasks that wait for others: Kubernetes knows no such thing, so whoever asks how they stand lets them go.

Such a task is suspended, and an annotation names the workloads that must have succeeded first. Who asks is a
command of the user's, or a small pod of the submission (`pod_starter`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nemorun.executors.kubernetes.api import Api, Object, path_of
from nemorun.executors.kubernetes.manifests import release_patch
from nemorun.executors.kubernetes.names import TASK_LABEL
from nemorun.executors.kubernetes.workloads import (
    FAILED,
    SUCCEEDED,
    finished,
    held,
    waits_for,
    without_waiting,
)
from nemorun.job import JobState, JobStatus, Reason


def settle(api: Api, workloads: Mapping[str, Object], name: str, now: JobStatus, at: float) -> JobStatus:
    """The status of the workload of that name, which may wait for others: is let go, or can never be.

    `workloads`: by name, all of the experiment.
    """
    workload = workloads[name]
    others = waits_for(workload)
    if not others:
        return now
    if failed := [other for other in others if _is_lost(workloads, other)]:
        words = f"{_tasks(workloads, failed)} did not succeed"
        return replace(
            now, state=JobState.FAILED, reason=Reason.DEPENDENCY_FAILED, message=words, ended_at=at
        )
    if missing := [other for other in others if other not in workloads]:
        words = f"it waits for {', '.join(missing)}, which the cluster does not have any more"
        return replace(now, reason=Reason.NEVER, message=words)
    if held(workload):
        return now
    if waiting := [other for other in others if not finished(workloads[other], SUCCEEDED)]:
        return replace(now, reason=Reason.DEPENDENCY, message=_tasks(workloads, waiting))
    path = path_of(workload["apiVersion"], workload["kind"], workload["metadata"]["namespace"], name)
    api.patch(path, without_waiting(release_patch(workload)))
    return replace(now, reason=Reason.NONE, message="what it waited for has succeeded")


def may_start(workloads: Mapping[str, Object], workload: Object) -> bool:
    """It waits for others, and all of them have succeeded."""
    others = waits_for(workload)
    succeeded = (other in workloads and finished(workloads[other], SUCCEEDED) for other in others)
    return bool(others) and not held(workload) and all(succeeded)


def may_start_later(workloads: Mapping[str, Object], workload: Object) -> bool:
    """It waits for others, and all of them may yet succeed."""
    others = waits_for(workload)
    lost = (other not in workloads or _is_lost(workloads, other) for other in others)
    return bool(others) and not any(lost)


def _is_lost(workloads: Mapping[str, Object], name: str) -> bool:
    """It has failed, or waits for one that has."""
    workload = workloads.get(name)
    if workload is None:
        return False
    return bool(finished(workload, FAILED)) or any(
        _is_lost(workloads, other) for other in waits_for(workload)
    )


def _tasks(workloads: Mapping[str, Object], names: list[str]) -> str:
    tasks = [(workloads[name]["metadata"].get("labels") or {}).get(TASK_LABEL, name) for name in names]
    return ("tasks " if len(tasks) > 1 else "task ") + ", ".join(f"'{task}'" for task in tasks)
