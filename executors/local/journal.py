"""The journal: what happened to every task of a submission, one JSON line an event; the truth for `poll`.

Whoever appends holds the supervisor's lock; anyone may read, at any time.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nemorun.job import JobState, JobStatus, Reason


@dataclass(frozen=True)
class Process:
    pid: int
    identity: str | None
    """See `processes.identity`; None if it had ended by then."""


@dataclass(frozen=True)
class TaskHistory:
    token: str
    status: JobStatus
    ranks: tuple[Process, ...] = ()
    """The processes of the attempt that runs."""
    failed_rank: int = 0
    """The first that failed in the last attempt."""


@dataclass(frozen=True)
class History:
    """The journal's events, added up."""

    supervisor: Process | None = None
    host: str = ""
    abandoned: bool = False
    """Nothing was ever started here, and nothing will be."""
    tasks: Mapping[str, TaskHistory] = field(default_factory=dict)

    @property
    def unfinished(self) -> list[str]:
        return [name for name, task in self.tasks.items() if not task.status.state.ended]


class Journal:
    """Appends events; each is one write of one line."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        size = os.fstat(self._fd).st_size
        # A writer that died, or met a full disk, may have left a piece of a line.
        self._torn = size > 0 and os.pread(self._fd, 1, size - 1) != b"\n"

    def append(self, event: str, **fields: object) -> None:
        """Raises OSError if the line could not be written whole."""
        line = json.dumps({"time": time.time(), "event": event, **fields}).encode() + b"\n"
        if self._torn:
            line = b"\n" + line
        written = os.write(self._fd, line)
        self._torn = written < len(line)
        if self._torn:
            os.write(self._fd, line[written:])  # says why, by raising
            self._torn = False

    def is_deleted(self) -> bool:
        return os.fstat(self._fd).st_nlink == 0

    def close(self) -> None:
        os.close(self._fd)


#: Path -> inode, bytes read, and the history up to there: a journal only grows.
_known: dict[Path, tuple[int, int, History]] = {}


def read(path: Path) -> History:
    """The history so far; an empty one where there is no journal. Costs one `stat` if nothing was added."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return History()
    inode, done, history = _known.get(path, (0, 0, History()))
    if inode != stat.st_ino or done > stat.st_size:
        done, history = 0, History()
    if done < stat.st_size:
        with path.open("rb") as file:
            file.seek(done)
            added = file.read()
        whole = added.rfind(b"\n") + 1
        tasks = dict(history.tasks)
        for line in added[:whole].splitlines():
            with suppress(ValueError):  # the piece of a line that its writer could not finish
                history = _add(history, tasks, json.loads(line))
        history = replace(history, tasks=tasks)
        if len(_known) > 100:
            _known.clear()
        _known[path] = (stat.st_ino, done + whole, history)
    return history


def _add(history: History, tasks: dict[str, TaskHistory], event: dict[str, Any]) -> History:
    kind = event["event"]
    if kind == "submitted":
        tasks.update(
            (name, TaskHistory(token, JobStatus(JobState.PENDING))) for name, token in event["tasks"].items()
        )
        return replace(history, supervisor=Process(event["pid"], event["identity"]), host=event["host"])
    if kind == "abandoned":
        return replace(history, abandoned=True, host=event["host"])
    task = tasks[event["task"]]
    status = task.status
    if kind == "waiting":
        status = replace(
            status, state=JobState.PENDING, reason=Reason(event["reason"]), message=event["message"]
        )
        task = replace(task, ranks=())
    elif kind == "starting":
        status = replace(status, attempt=event["attempt"], started_at=status.started_at or event["time"])
    elif kind == "started":
        status = replace(status, state=JobState.RUNNING, reason=Reason.NONE, message="")
        task = replace(task, ranks=tuple(Process(*rank) for rank in event["ranks"]))
    elif kind == "attempt ended":
        status = replace(status, exit_code=event["exit_code"], message=event["message"])
        task = replace(task, ranks=(), failed_rank=event["failed_rank"])
    elif kind == "ended":
        status = replace(
            status,
            state=JobState(event["state"]),
            reason=Reason(event["reason"]),
            message=event["message"],
            ended_at=event["time"],
        )
        task = replace(task, ranks=())
    tasks[event["task"]] = replace(task, status=status)
    return history


def try_lock(folder: Path) -> int | None:
    """The supervisor's lock as a file descriptor (to be closed), or None while someone holds it."""
    fd = os.open(folder / "supervisor.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd
