"""What became of a task: from its Job (or PyTorchJob, JobSet ...), its pods and events to one status. Pure.

The workload's own conditions say that it has ended, its pods say why. One that is not there any more is never
taken for succeeded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from nemorun.executors.kubernetes.attempts import Attempt
from nemorun.executors.kubernetes.names import EXPERIMENT_LABEL
from nemorun.executors.kubernetes.reasons import (
    Object,
    code_in_words,
    container_status,
    node_of,
    report,
    waiting,
    without_pods,
)
from nemorun.executors.kubernetes.workloads import (
    FAILED,
    SUCCEEDED,
    end_of,
    finished,
    held,
    is_suspended,
    pods_wanted,
    queue_of,
    waits_for,
)
from nemorun.job import JobState, JobStatus, Reason

#: Seconds after which what left no trace on the cluster was surely not submitted.
SUBMISSION_LAG = 120.0
#: Seconds for which a workload that was seen to run may go unseen, and still be known to have been deleted.
JUST_SEEN = 60.0

#: Seconds within which pods end that end for one cause; a Job waits longer before it starts another.
TOGETHER = 8.0
_OWN = (Reason.EXIT_CODE, Reason.SIGNAL)
#: How a pod ends that was told to, since another had failed.
_CONSEQUENCES = (137, 143)


@dataclass
class Evidence:
    """All that is known of a task."""

    now: float
    handle: str | None = None
    """`kind/namespace/name`."""
    workload: Object | None = None
    pods: Sequence[Object] = ()
    events: Sequence[Object] = ()
    """Of the workload and its pods, the latest first."""
    attempts: Sequence[Attempt] = ()
    cancelled: bool = False
    """Its cancellation was ordered here."""
    submitting: bool = False
    """It is, or may be, just being submitted."""
    seen_at: float | None = None
    """When this process last saw it not ended."""
    about: dict[str, list[Object]] = field(init=False)
    """The events by the name of what they are about."""

    def __post_init__(self) -> None:
        self.about = {}
        for event in self.events:
            name = event.get("involvedObject", {}).get("name", "")
            self.about.setdefault(name, []).append(event)


def status(seen: Evidence) -> JobStatus:
    """The table. The first line that applies is the answer."""
    if seen.workload is None:
        return _gone(seen)
    succeeded = finished(seen.workload, SUCCEEDED)
    failed = finished(seen.workload, FAILED)
    if succeeded:
        return _now(seen, JobState.SUCCEEDED, code=0, ended_at=end_of(seen.workload, succeeded))
    if failed and seen.cancelled:  # what is told to stop while it is deleted may end as failed first
        return _now(seen, JobState.CANCELLED, Reason.CANCELLED, ended_at=end_of(seen.workload, failed))
    if failed:
        return _failed(seen, failed)
    if seen.cancelled or seen.workload["metadata"].get("deletionTimestamp"):
        return _now(seen, JobState.RUNNING, message="it is being deleted")
    if is_suspended(seen.workload):
        return _suspended(seen, seen.workload)
    return _active(seen, seen.workload)


def _now(
    seen: Evidence,
    state: JobState,
    reason: Reason = Reason.NONE,
    message: str = "",
    *,
    code: int | None = None,
    ended_at: float | None = None,
) -> JobStatus:
    """A status with what is known of attempts."""
    number = max((one.number for one in seen.attempts), default=0)
    started = min((one.started_at for one in seen.attempts if one.started_at), default=None)
    for one in seen.attempts:  # those that a pod's supervisor made in place are more than its pods
        number = max(number, report(one.note).get("attempt", 0))
    return JobStatus(state, reason, message, code, number, started, ended_at)


def _gone(seen: Evidence) -> JobStatus:
    last = max((one.ended_at for one in seen.attempts if one.ended_at), default=None)
    if seen.cancelled:
        return _now(seen, JobState.CANCELLED, Reason.CANCELLED, ended_at=last or seen.now)
    if seen.seen_at is not None and seen.now - seen.seen_at <= JUST_SEEN:
        words = f"{seen.handle or 'its workload'} was deleted, and not by nemorun"
        return _now(seen, JobState.CANCELLED, Reason.CANCELLED, words, ended_at=last or seen.now)
    if seen.submitting and not seen.handle:
        return _now(seen, JobState.PENDING, message="it is being submitted")
    if seen.handle or seen.attempts:
        words = (
            f"the cluster has no {seen.handle or 'workload of it'} any more: it was deleted, or its "
            "ttl_after_finished is over; how it ended is not known"
        )
        return _now(seen, JobState.UNKNOWN, message=words)
    words = "it never reached the cluster; submit it anew"
    return _now(seen, JobState.FAILED, Reason.NOT_SUBMITTED, words, ended_at=seen.now)


def _failed(seen: Evidence, failed: Object) -> JobStatus:
    assert seen.workload is not None
    at = end_of(seen.workload, failed)
    said = " ".join(str(failed.get("message") or "").split())
    if "deadline" in f"{failed.get('reason')} {said}".lower():
        words = f"{said[:1].lower()}{said[1:]}; ask for more with active_deadline"
        return _now(seen, JobState.FAILED, Reason.TIMEOUT, words, ended_at=at)
    culprit = first_failed(seen.attempts)
    if culprit is None:
        return _now(seen, JobState.FAILED, Reason.EXIT_CODE, said, ended_at=at)
    return _now(seen, JobState.FAILED, culprit.reason, in_words(culprit), code=culprit.code, ended_at=at)


def first_failed(attempts: Sequence[Attempt]) -> Attempt | None:
    """Who failed first, the last time that something failed; others end with it, or for it."""
    ends = [one for one in attempts if one.over and one.reason is not Reason.NONE]
    own = [one for one in ends if one.reason in _OWN and one.code not in _CONSEQUENCES]
    own += [one for one in ends if one.reason is Reason.OUT_OF_MEMORY]
    ends = list({one.index: one for one in sorted(own or ends, key=lambda one: one.number)}.values())
    last = max((one.ended_at or 0 for one in ends), default=0)
    together = [one for one in ends if (one.ended_at or 0) >= last - TOGETHER]
    return min(together, key=lambda one: one.ended_at or last, default=None)


def in_words(one: Attempt) -> str:
    """`rank 3 on dgx-007: ValueError: ...`, or `pod train-x-0-abcde on dgx-007 ended with 3: ...`."""
    said = report(one.note)
    failed = one.reason in _OWN
    who = f"rank {said['rank']}" if failed and "rank" in said else f"pod {one.pod}"
    where = f"{who} on {one.node}" if one.node else who
    told = f": {one.words}" if one.words else ""
    if failed and one.code is not None and not said.get("error"):
        return f"{where} ended with {code_in_words(one.code)}{told}"
    return f"{where}{told}"


def _suspended(seen: Evidence, workload: Object) -> JobStatus:
    if held(workload):
        return _now(seen, JobState.PENDING, Reason.SUSPENDED, _how_held(seen, workload))
    if waits_for(workload):
        return _now(seen, JobState.PENDING, Reason.DEPENDENCY)
    if queue := queue_of(workload):
        name = f"{workload['kind']}-{workload['metadata']['name']}-".lower()  # Kueue adds a hash
        about = (event for event in seen.events if event["involvedObject"]["name"].startswith(name))
        told = next((event.get("message", "") for event in about), "")
        words = f"in queue '{queue}' of Kueue" + (f": {' '.join(told.split())}" if told else "")
        return _now(seen, JobState.PENDING, Reason.RESOURCES, words)
    words = f"somebody has suspended it; `nemorun resume {_experiment(workload)}` lets it go on"
    return _now(seen, JobState.PENDING, Reason.SUSPENDED, words)


def _how_held(seen: Evidence, workload: Object) -> str:
    there = [pod for pod in seen.pods if "running" in (container_status(pod).get("state") or {})]
    if there:
        return f"{len(there)} of its pods " + ("is still ending" if len(there) == 1 else "are still ending")
    return f"`nemorun resume {_experiment(workload)}` lets it go on"


def _experiment(workload: Object) -> str:
    return str((workload["metadata"].get("labels") or {}).get(EXPERIMENT_LABEL, "ID"))


def _own_events(seen: Evidence) -> list[Object]:
    assert seen.workload is not None
    return seen.about.get(seen.workload["metadata"]["name"], [])


def _active(seen: Evidence, workload: Object) -> JobStatus:
    wanted = pods_wanted(workload)
    current = [pod for pod in seen.pods if pod.get("status", {}).get("phase") not in ("Failed", "Succeeded")]
    running = [pod for pod in current if "running" in (container_status(pod).get("state") or {})]
    done = sum(pod.get("status", {}).get("phase") == "Succeeded" for pod in seen.pods)
    if len(running) + done >= wanted and running:
        return _now(seen, JobState.RUNNING, message=_on(running))
    if done >= wanted:
        return _now(seen, JobState.RUNNING, message="its pods have succeeded")
    before = _before(seen)
    reason, words = _why_waiting(seen, current, wanted)
    if running:
        words = f"{len(running)} of {wanted} pods run" + (f"; {words}" if words else "")
    if before and reason in (Reason.NONE, Reason.BACKOFF):
        reason = Reason.BACKOFF
    return _now(seen, JobState.PENDING, reason, "; ".join(filter(None, [before, words])))


def _on(running: Sequence[Object]) -> str:
    nodes = sorted({node_of(pod) for pod in running if node_of(pod)})
    ending = "ending " if all(pod["metadata"].get("deletionTimestamp") for pod in running) else ""
    return f"{ending}on {', '.join(nodes)}" if len(nodes) <= 4 else f"{ending}on {len(nodes)} nodes"


def _why_waiting(seen: Evidence, current: Sequence[Object], wanted: int) -> tuple[Reason, str]:
    """What holds up the most pods."""
    whys: Counter[tuple[Reason, str]] = Counter()
    for pod in current:
        if why := waiting(pod, seen.about.get(pod["metadata"]["name"], ())):
            whys[why] += 1
    if whys:
        (reason, words), pods = whys.most_common(1)[0]
        many = f"{pods} of {wanted} pods " + ("waits: " if pods == 1 else "wait: ")
        return reason, words if wanted == 1 else many + words
    if len(current) < wanted and (refused := without_pods(_own_events(seen))):
        return refused
    on_way = [pod for pod in current if "running" not in (container_status(pod).get("state") or {})]
    starting = sorted({node_of(pod) for pod in on_way if node_of(pod)})
    if starting and len(starting) <= 4:
        return Reason.NONE, f"starting on {', '.join(starting)}"
    return Reason.NONE, f"starting on {len(starting)} nodes" if starting else ""


def _before(seen: Evidence) -> str:
    """Why it waits again, after it ran."""
    ends = [one for one in seen.attempts if one.over and one.reason is not Reason.NONE]
    going = {one.index for one in seen.attempts if not one.over}
    culprit = first_failed([one for one in ends if one.index not in going])
    if culprit is None:
        return ""
    how = {
        Reason.PREEMPTED: "was preempted",
        Reason.EVICTED: "was evicted",
        Reason.SUSPENDED: "was suspended",
        Reason.OUT_OF_MEMORY: "ran out of memory",
        Reason.NODE_FAILURE: "lost its node",
        Reason.TIMEOUT: "reached its time limit",
    }.get(culprit.reason, f"ended with {code_in_words(culprit.code)}")
    where = f" on {culprit.node}" if culprit.node else ""
    return f"attempt {culprit.number} {how}{where}"
