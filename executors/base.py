"""What every executor does, as a numbered contract.

1. An executor is a dataclass of plain fields; the field docs are its help. `validate()` checks the values
   alone, `check_job()` checks one job against them. Both raise `ConfigError` and touch nothing.
2. `render()` is pure: the same jobs give the same text. What a dry run prints is what `submit()` sends.
3. `submit()` sends a rendered submission once: called again with the same one, it finds the first and
   starts nothing new. All jobs of one call share one connection; dependencies among them are kept.
   Tasks whose executors have the same `place()` are submitted in one call, and asked for in one.
4. `poll()` answers for all references at once and never raises for a lost job: what none can tell is UNKNOWN.
5. `logs()` reads all files that are asked for in one go, from the offsets it is given, so that a reader goes
   on where it stopped.
6. `cancel()` is idempotent, and returns when the jobs have ended or the executor has taken the order over.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar

from nemorun.errors import ConfigError
from nemorun.job import JobRef, JobSpec, JobStatus, Resources


@dataclass(frozen=True)
class Rendered:
    """A submission in full: what is printed by a dry run and what is sent."""

    executor: str
    """The executor's type, as in the list of executors."""
    text: str
    """Script, manifest or plan: exactly what is sent."""
    jobs: tuple[JobSpec, ...]


@dataclass(frozen=True)
class LogChunk:
    """A piece of one rank's output: whole lines as far as they exist."""

    rank: int
    attempt: int
    text: str
    offset: int
    """Byte offset in this attempt's log after this chunk."""


#: Where a reader of logs stands: (attempt, rank) -> bytes read.
LogOffsets = Mapping[tuple[int, int], int]


@dataclass(frozen=True)
class Check:
    """One line of `nemorun executors check NAME`."""

    name: str
    ok: bool
    message: str
    advice: bool = False
    """It works as it is; the message says what would be missed."""


@dataclass
class Executor(ABC):
    """Where and how jobs run. Fields left None are taken from the task."""

    type: ClassVar[str]
    """Its name in the list of executors, and in settings."""
    pace: ClassVar[tuple[float, float]] = (0.02, 0.25)
    """Seconds between two looks at its jobs: after something happened, and at most, when nothing does."""

    env_vars: dict[str, str] = field(default_factory=dict)
    """Environment of every rank; names keep their case, values are passed untouched."""
    retries: int = 0
    """How often a failed task is started again. A preemption costs none."""

    @abstractmethod
    def validate(self) -> None:
        """Check the fields. Raises ConfigError that names the field, the value and what is allowed."""

    @abstractmethod
    def check_job(self, job: JobSpec) -> None:
        """Check one job against the fields and what is there, before anything is sent. Raises ConfigError."""

    def warnings(self) -> list[str]:
        """What is allowed and yet may not be meant, a sentence each."""
        return []

    @abstractmethod
    def resources(self, wanted: Resources | None) -> Resources:
        """The job's resources: the executor's fields if set, else what the task wants, else one process.

        Raises ConfigError where both are set and differ.
        """

    def place(self) -> Hashable:
        """Where it submits to: executors of equal place take each other's tasks. By default, its equals."""
        return repr(self)

    @abstractmethod
    def render(self, jobs: Sequence[JobSpec], own: Mapping[str, Executor] = MappingProxyType({})) -> Rendered:
        """`own`: the executors, all of this place, of the tasks that have another one than this."""

    @abstractmethod
    def submit(self, rendered: Rendered, secrets: Mapping[str, str]) -> dict[str, str]:
        """Send it; `secrets` maps the names in the jobs to values. Returns task name -> handle."""

    @abstractmethod
    def poll(self, refs: Sequence[JobRef]) -> dict[str, JobStatus]:
        """Token -> status, for every reference given."""

    @abstractmethod
    def logs(
        self, reading: Mapping[JobRef, LogOffsets], rank: int | None = None
    ) -> Iterable[tuple[JobRef, LogChunk]]:
        """What these jobs have written since their offsets, and then stop: following is the caller's loop."""

    @abstractmethod
    def excerpt(self, ref: JobRef) -> str:
        """Why a task failed, as its first failing rank wrote it: the traceback, or the last lines."""

    def remote_dir(self, ref: JobRef) -> str | None:
        """Where the job's folder is, if it is not the one here, as a person would reach it: `host:folder`."""
        return None

    @abstractmethod
    def cancel(self, refs: Sequence[JobRef]) -> None: ...

    @abstractmethod
    def check(self) -> list[Check]:
        """Can this executor be used from here? One line a thing that must be so."""


def agreed(field: str, mine: int | None, theirs: int | None, why: str = "") -> int | None:
    """The executor's number, or else the task's. Raises ConfigError where both are set and differ.

    `why` says in brackets where the executor's number comes from, if not from a field of that name.
    """
    if mine is not None and theirs is not None and mine != theirs:
        raise ConfigError(
            f"{field}: the executor has {mine}{why}, but the task asks for {theirs}; set only one"
        )
    return theirs if mine is None else mine
