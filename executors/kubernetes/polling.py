"""How tasks of one place stand: one list of their workloads and one of their pods, whatever their number.

Who asks again and again is answered by a watch (`watching`). What only a question notices is done here, too:
a task is let go when those that it waits for have succeeded, and at its end its secrets are deleted and its
last lines kept.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nemorun.executors.kubernetes import attempts
from nemorun.executors.kubernetes.api import Api, Object, api_of
from nemorun.executors.kubernetes.cancelling import was_cancelled
from nemorun.executors.kubernetes.dependencies import settle
from nemorun.executors.kubernetes.keeping import keep_last_lines
from nemorun.executors.kubernetes.names import (
    EXPERIMENT_LABEL,
    MANAGER,
    TASK_LABEL,
    experiment_id,
    label_value,
    object_name,
    task_name,
)
from nemorun.executors.kubernetes.reasons import container_status, ended, report
from nemorun.executors.kubernetes.refusals import ApiError, Forbidden
from nemorun.executors.kubernetes.states import JUST_SEEN, SUBMISSION_LAG, Evidence, status
from nemorun.executors.kubernetes.watching import known
from nemorun.executors.kubernetes.workloads import (
    KINDS,
    finished,
    held,
    is_suspended,
    kind_of,
    pods_wanted,
    queue_of,
    time_to_live,
)
from nemorun.job import JobRef, JobState, JobStatus

if TYPE_CHECKING:
    from nemorun.executors.kubernetes.executor import KubernetesExecutor

#: Experiments that a selector names; more are found among all that are nemorun's.
_NAMED = 40
#: Seconds between two questions for events.
_EVENTS_AFTER = 4.0

#: Token -> when this process last saw its workload not ended.
_seen: dict[str, float] = {}
_events: dict[tuple[int, str], tuple[float, list[Object]]] = {}


@dataclass
class _View:
    """What the cluster holds of the tasks that are asked about."""

    workloads: dict[str, Object]
    pods: dict[str, list[Object]]
    """Both by the workload's name."""


def poll(executor: KubernetesExecutor, refs: Sequence[JobRef]) -> dict[str, JobStatus]:
    """Token -> status. Raises ApiError where the cluster cannot be asked."""
    if not refs:
        return {}
    api = api_of(executor)
    view = _look(api, executor, refs)
    evidence = [_evidence(view, ref) for ref in refs]
    events = _events_about(api, evidence)
    statuses = {}
    for ref, seen in zip(refs, evidence, strict=True):
        now = status(replace(seen, events=events))
        if seen.workload is not None:
            now = settle(api, view.workloads, object_name(ref.token), now, seen.now)
        statuses[ref.token] = _at_end(api, ref, seen, now) if now.state.ended else now
    return statuses


def pods_of(api: Api, refs: Iterable[JobRef], fresh: bool = False) -> dict[str, list[Object]]:
    """Token -> its pods; those that are gone, too, where their end was seen."""
    refs = list(refs)
    here = known(api, api.path("Pod"), _selector(refs))
    here.look(fresh)
    gone = [one for uid, one in here.deleted.items() if uid not in here.objects and ended(one)]
    found: dict[tuple[str, str], list[Object]] = defaultdict(list)
    for pod in [*gone, *here.objects.values()]:
        labels = pod["metadata"].get("labels") or {}
        found[labels.get(EXPERIMENT_LABEL, ""), labels.get(TASK_LABEL, "")].append(pod)
    return {ref.token: found[experiment_id(ref.token), label_value(task_name(ref.token))] for ref in refs}


def _look(api: Api, executor: KubernetesExecutor, refs: Sequence[JobRef]) -> _View:
    by_kind: dict[str, set[str]] = defaultdict(set)
    for ref in refs:
        by_kind[kind_of(ref, executor.kind)].add(object_name(ref.token))
    workloads: dict[str, Object] = {}
    for kind, wanted in by_kind.items():
        version, name = KINDS[kind]
        here = known(api, api.path(name, api_version=version), _selector(refs))
        here.look()
        there = {one["metadata"]["name"]: one for one in here.objects.values()}
        if not wanted <= set(there):  # a watch may be a moment behind a submission
            here.look(fresh=True)
            there = {one["metadata"]["name"]: one for one in here.objects.values()}
        # what ended and was deleted at once: its end was seen all the same
        gone = {one["metadata"]["name"]: one for one in here.deleted.values() if finished(one)}
        workloads |= gone | there
    names = {ref.token: object_name(ref.token) for ref in refs}
    pods = pods_of(api, refs)
    over = {token for token, name in names.items() if name in workloads and finished(workloads[name])}
    if any(not ended(pod) for token in over for pod in pods[token]):
        pods = pods_of(api, refs, fresh=True)  # two watches: how it ended may not have come yet
    return _View(workloads, {name: pods[token] for token, name in names.items()})


def _selector(refs: Iterable[JobRef]) -> str:
    experiments = sorted({experiment_id(ref.token) for ref in refs})
    if len(experiments) > _NAMED:
        return f"app.kubernetes.io/managed-by={MANAGER}"
    return f"{EXPERIMENT_LABEL} in ({','.join(experiments)})"


def _evidence(view: _View, ref: JobRef) -> Evidence:
    name, now = object_name(ref.token), time.time()
    workload, pods = view.workloads.get(name), view.pods[name]
    seen = Evidence(
        now=now,
        handle=ref.handle,
        workload=workload,
        pods=pods,
        attempts=attempts.remember(ref.run_dir, pods, workload is not None and held(workload)),
        cancelled=was_cancelled(ref),
        submitting=now - _recorded_at(ref) < SUBMISSION_LAG,
        seen_at=_seen.get(ref.token),
    )
    if workload is not None and not finished(workload) and time_to_live(workload) > JUST_SEEN:
        _seen[ref.token] = now
    return seen


def _recorded_at(ref: JobRef) -> float:
    with suppress(OSError):
        return Path(ref.run_dir).stat().st_mtime
    return 0.0


def _events_about(api: Api, evidence: Iterable[Evidence]) -> list[Object]:
    """What went wrong lately, the latest first; asked for only where the objects do not say why they wait."""
    queued = any(
        seen.workload and is_suspended(seen.workload) and queue_of(seen.workload) for seen in evidence
    )
    found = _events_with(api, "involvedObject.kind=Workload") if queued else []
    if any(seen.workload and _is_riddle(seen.workload, seen.pods) for seen in evidence):
        found = [*found, *_events_with(api, "type!=Normal")]
    return sorted(found, key=_happened_at, reverse=True)


def _is_riddle(workload: Object, pods: Sequence[Object]) -> bool:
    if finished(workload) or is_suspended(workload):
        return False
    on_node = [pod for pod in pods if pod.get("spec", {}).get("nodeName") and not ended(pod)]
    held_up = any("waiting" in (container_status(pod).get("state") or {}) for pod in on_node)
    return held_up or len(pods) < pods_wanted(workload)


def _events_with(api: Api, fields: str) -> list[Object]:
    asked_at, found = _events.get((id(api), fields), (float("-inf"), []))
    if time.monotonic() - asked_at > _EVENTS_AFTER:
        try:
            found = api.get(api.path("Event"), fieldSelector=fields, limit=500)["items"]
        except Forbidden:  # it is only less that we can say
            found = []
        _events[id(api), fields] = time.monotonic(), found
    return found


def _happened_at(event: Object) -> str:
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return next((str(one) for one in times if one), "")


def _at_end(api: Api, ref: JobRef, seen: Evidence, now: JobStatus) -> JobStatus:
    """Bring the result, keep the last lines, and delete what the task no longer needs."""
    _seen.pop(ref.token, None)
    if now.state is JobState.SUCCEEDED:
        now = _bring_result(ref, seen, now)
    keep_last_lines(api, ref, seen.attempts)
    if seen.workload and _has_secrets(seen.workload, object_name(ref.token)):
        try:
            api.delete(api.path("Secret", object_name(ref.token)))
        except ApiError as error:  # that it ended is what is to be told; the Secret goes with its parent
            words = f"its Secret could not be deleted: {error}"
            now = replace(now, message="; ".join(filter(None, [now.message, words])))
    return now


def _has_secrets(workload: Object, name: str) -> bool:
    return re.search(rf'"secretKeyRef": {{[^}}]*"name": "{name}"', json.dumps(workload["spec"])) is not None


def _bring_result(ref: JobRef, seen: Evidence, now: JobStatus) -> JobStatus:
    """Write what the task returned into the record, whole and for its owner only."""
    said = [report(one.note) for one in seen.attempts if one.index == 0 and one.code == 0]
    result = next((one["result"] for one in reversed(said) if "result" in one), None)
    if result is None:
        return now
    target = Path(ref.run_dir) / "result.json"
    part = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(result, file)
        part.replace(target)
    except OSError as error:  # it is asked for again, when there is room
        words = f"it succeeded, but its result cannot be kept here: {error}"
        return replace(now, state=JobState.UNKNOWN, message=words)
    return now
