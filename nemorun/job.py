"""The one contract between experiments and executors: what a job is, and what became of it.

Standard library only: the supervisor and the worker import this at every start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

#: A task ends with this code to say "I saved a checkpoint; start me again" (EX_TEMPFAIL of sysexits.h).
EXIT_RESUME = 75


class JobState(str, Enum):
    """Where a job stands. A job that no one can tell about is UNKNOWN, never FAILED and never SUCCEEDED."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"

    @property
    def ended(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class Reason(str, Enum):
    """Why a job stands where it stands; the value is what a person reads."""

    NONE = ""
    # pending
    DEPENDENCY = "waiting for a dependency"
    RESOURCES = "waiting for resources"
    BACKOFF = "waiting before the next attempt"
    HELD = "held"
    SUSPENDED = "suspended"
    QUOTA = "over quota"
    IMAGE = "its image cannot be had"
    NEVER = "cannot start as it is"
    # ended
    EXIT_CODE = "non-zero exit code"
    SIGNAL = "ended by a signal"
    OUT_OF_MEMORY = "out of memory"
    TIMEOUT = "time limit reached"
    PREEMPTED = "preempted"
    REQUEUED = "requeued"
    EVICTED = "evicted"
    NODE_FAILURE = "node failure"
    DEPENDENCY_FAILED = "a dependency failed"
    CANCELLED = "cancelled"
    NOT_SUBMITTED = "never submitted"
    LOST = "its supervisor died"


@dataclass(frozen=True)
class Resources:
    """What a job asks for. `ntasks_per_node` is the number of ranks on each node."""

    nodes: int = 1
    ntasks_per_node: int = 1
    gpus_per_node: int = 0

    @property
    def world_size(self) -> int:
        return self.nodes * self.ntasks_per_node


@dataclass(frozen=True)
class JobSpec:
    """One task of an experiment, ready to be rendered. Plain data; the same spec renders to the same text.

    Exactly one of `task` and `command` is set.
    """

    name: str
    """The task's name, unique in its experiment: letters, digits, `-`, `_`, `.`."""
    token: str
    """`{experiment id}.{task name}`: unique for ever, so that a submission can be found again."""
    run_dir: str
    """The task's own folder on the launching machine: record, logs and results."""
    resources: Resources
    task: str | None = None
    """Path of the task's YAML, which `nemorun.worker` builds and calls."""
    command: tuple[str, ...] | None = None
    """A plain command line instead."""
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    """Names of environment variables whose values are taken at submission and written nowhere."""
    code: str | None = None
    """Path of the frozen code archive (`.tar.gz`, its name is its SHA-256), or None."""
    code_root: str | None = None
    """The folder that the archive was made of: a script of it named in `command` runs from the archive."""
    cwd: str | None = None
    """The folder that the launcher was started in."""
    dependencies: tuple[str, ...] = ()
    """Names of tasks of the same submission that must have succeeded first."""
    retries: int = 0
    """How often it is started again after a failure, the executor's default already taken into account."""
    resumable: bool = False
    """On SIGTERM or SIGUSR2 it saves its state and ends with EXIT_RESUME; the next start goes on there."""


@dataclass(frozen=True)
class JobRef:
    """What is needed to find a submitted job again from another process."""

    name: str
    token: str
    run_dir: str
    handle: str | None = None
    """The executor's own id; None where the submission was never confirmed."""


@dataclass(frozen=True)
class JobStatus:
    state: JobState
    reason: Reason = Reason.NONE
    message: str = ""
    """One sentence in plain words: which rank, which node, which exit code."""
    exit_code: int | None = None
    """Of the first rank that failed, as a shell says it: 128 + n for signal n."""
    attempt: int = 0
    """Attempts started so far."""
    started_at: float | None = None
    """Seconds since the epoch, as `time.time()`."""
    ended_at: float | None = None
