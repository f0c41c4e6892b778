"""The attempts of a task: each start of a pod's container, remembered here when its pod is gone.

Kubernetes numbers nothing: an attempt of a node is the next pod of its index, or the next start of its
container. What was seen stands in `pods.json` of the task's run folder.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nemorun.executors.kubernetes.reasons import End, Object, container_status, how_ended, node_of, timestamp
from nemorun.executors.kubernetes.reasons import ended as pod_end
from nemorun.job import Reason

FILE = "pods.json"

_INDEXES = ("batch.kubernetes.io/job-completion-index", "training.kubeflow.org/replica-index")


@dataclass(frozen=True)
class Attempt:
    """One start of the container of the pod of an index."""

    index: int
    number: int
    """From 1."""
    pod: str
    uid: str
    restart: int = 0
    """Which start of this pod's container, from 0."""
    replaced: bool = False
    """Its container was started again since."""
    container: str = ""
    ranks: int = 1
    """That run in this pod."""
    node: str = ""
    started_at: float | None = None
    ended_at: float | None = None
    over: bool = False
    reason: Reason = Reason.NONE
    words: str = ""
    code: int | None = None
    note: str = ""
    """The container's termination message."""


def index_of(pod: Object) -> int:
    """Which node of the task this pod is, from 0."""
    metadata = pod["metadata"]
    marks = {**(metadata.get("annotations") or {}), **(metadata.get("labels") or {})}
    index = next((int(marks[name]) for name in _INDEXES if marks.get(name, "").isdigit()), 0)
    # a PyTorchJob's master is its first node
    return index + 1 if marks.get("training.kubeflow.org/replica-type") == "worker" else index


def brought_up_to_date(
    known: Sequence[Attempt], pods: Iterable[Object], suspended: bool = False
) -> list[Attempt]:
    """What was remembered, with what these pods, all that there are, say now."""
    found = {(one.uid, one.restart): one for one in known}
    present = set()
    for pod in sorted(pods, key=lambda one: (one["metadata"]["creationTimestamp"], one["metadata"]["name"])):
        uid = pod["metadata"]["uid"]
        present.add(uid)
        for seen in _starts(pod):
            key = uid, seen.restart
            number = found[key].number if key in found else _next_number(found.values(), seen.index)
            found[key] = replace(seen, number=number)
    for key, one in found.items():
        if one.uid not in present and not one.over:
            gone = "its pod was deleted: its node was emptied or lost, or somebody did it"
            why = (Reason.SUSPENDED, "it was suspended") if suspended else (Reason.EVICTED, gone)
            found[key] = replace(one, over=True, reason=why[0], words=why[1])
    return sorted(found.values(), key=lambda one: (one.index, one.number))


def _next_number(found: Iterable[Attempt], index: int) -> int:
    return 1 + max((one.number for one in found if one.index == index), default=0)


def _starts(pod: Object) -> Iterator[Attempt]:
    """The starts of a pod's container that it still tells of: the last, and the one before."""
    status = container_status(pod)
    restarts = int(status.get("restartCount") or 0)
    metadata = pod["metadata"]
    container = pod["spec"]["containers"][0]
    env = {one["name"]: one.get("value") for one in container.get("env") or ()}
    base = Attempt(
        index=index_of(pod),
        number=0,
        pod=metadata["name"],
        uid=metadata["uid"],
        container=container["name"],
        ranks=int(env.get("NEMORUN_RANKS") or 1),
        node=node_of(pod),
    )
    if restarts and (before := (status.get("lastState") or {}).get("terminated")):
        # the pod itself goes on: that it is being ended, say, is nothing of this start's
        end = how_ended({}, before)
        yield _ended(replace(base, restart=restarts - 1, replaced=True), before, end)
    state = status.get("state") or {}
    if last := pod_end(pod):
        yield _ended(replace(base, restart=restarts), state.get("terminated") or {}, last)
    elif "running" in state:
        yield replace(base, restart=restarts, started_at=timestamp(state["running"].get("startedAt")))


def _ended(one: Attempt, terminated: Object, end: End) -> Attempt:
    return replace(
        one,
        started_at=timestamp(terminated.get("startedAt")),
        ended_at=timestamp(terminated.get("finishedAt")),
        over=True,
        reason=end.reason,
        words=end.words,
        code=end.code,
        note=terminated.get("message") or "",
    )


def read(run_dir: str) -> list[Attempt]:
    """What was remembered of a task."""
    try:
        entries: list[dict[str, Any]] = json.loads((Path(run_dir) / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or cut off on a full disk: the pods still there tell it again
        return []
    return [Attempt(**{**entry, "reason": Reason(entry["reason"])}) for entry in entries]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time: two that saw different pods must not number them alike."""
    fd = os.open(folder / f".{FILE}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def remember(run_dir: str, pods: Sequence[Object], suspended: bool = False) -> list[Attempt]:
    """The task's attempts, all that there ever were; what is new is written down."""
    known = read(run_dir)
    now = brought_up_to_date(known, pods, suspended)
    folder = Path(run_dir)
    if now == known or not folder.is_dir():
        return now
    try:
        with _locked(folder):
            now = brought_up_to_date(read(run_dir), pods, suspended)
            part = folder / f"{FILE}.new"
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                json.dump([asdict(one) for one in now], file, indent=1)
            part.replace(folder / FILE)
    except OSError:
        pass  # a full disk: what is not written is seen again as long as its pod is there
    return now
