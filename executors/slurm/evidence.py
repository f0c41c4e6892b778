"""What one poll has found of a job, before it is judged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from nemorun.executors.slurm.parse import Row


@dataclass(frozen=True)
class Event:
    """A line of the journal."""

    at: float
    kind: str
    attempt: int
    words: tuple[str, ...]


@dataclass
class Evidence:
    """All that one poll has found of a job."""

    now: float
    """By the cluster's clock."""
    asked_at: float = 0.0
    """When Slurm was asked, by the same clock: what the journal says later is newer."""
    job: str = ""
    """Its id, if Slurm has ever given it one."""
    arrived: bool = False
    """Its folder is there."""
    submitting: bool = False
    """Its experiment is just being submitted,"""
    fresh: bool = False
    """or may yet be: its record was written just now."""
    cancel_ordered: bool = False
    journal: list[Event] = field(default_factory=list)
    queued: Row | None = None
    accounted: list[Row] = field(default_factory=list)
    """Oldest first: one for each time that Slurm started it."""
    silent: str = ""
    """Why Slurm, or the file system, tells nothing."""
    unaccounted: str = ""
    """Why sacct tells nothing."""
    failure: str = ""
    """`{rank} {JSON}`: the note of the first rank that failed."""
    said: list[str] = field(default_factory=list)
    """What srun and slurmstepd said of it."""
    users: dict[str, str] = field(default_factory=dict)
    """Numbers of users to their names."""


def events(lines: Iterable[str]) -> list[Event]:
    """A journal; a line that is not whole (yet) is passed over."""
    found = []
    for line in lines:
        words = line.split()
        if len(words) >= 3 and words[0].isdigit() and words[2].isdigit():
            found.append(Event(float(words[0]), words[1], int(words[2]), tuple(words[3:])))
    return found
