"""What one call of sbatch submits: single tasks, and equal tasks as one job array."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from nemorun.executors.base import Rendered


@dataclass(frozen=True)
class Unit:
    name: str
    """The task's name, or `array-N`."""
    script: str
    """The script for sbatch, complete."""
    tasks: tuple[str, ...]
    """One task, or an array's in the order of its indices."""
    after: tuple[str, ...] = ()
    """Names of the tasks that must have succeeded first."""
    limit: int | None = None
    """How many of an array run at once."""
    dependency: str | None = None
    """What the user wants it to wait for besides: it stands in the script, and sbatch takes only one."""


@dataclass(frozen=True)
class SlurmRendered(Rendered):
    units: tuple[Unit, ...] = ()
    """In an order in which each comes after all that it waits for."""


@dataclass(frozen=True)
class Draft:
    """A task before it is known whether it goes alone."""

    name: str
    key: Hashable
    """Tasks of equal keys differ in nothing but their names."""
    after: tuple[str, ...]
    array: bool
    """May it be part of an array?"""


def grouped(drafts: Sequence[Draft]) -> list[tuple[str, tuple[str, ...]]]:
    """(the unit's name, its tasks), each unit behind those that it waits for."""
    groups: dict[Hashable, list[Draft]] = {}
    for draft in drafts:
        groups.setdefault((draft.key, frozenset(draft.after), draft.array or draft.name), []).append(draft)
    taken = {draft.name for draft in drafts}
    names = (name for number in range(1, 2 * len(drafts) + 1) if (name := f"array-{number}") not in taken)
    waiting = [(next(names) if len(group) > 1 else group[0].name, group) for group in groups.values()]
    placed: set[str] = set()
    units = []
    while waiting:
        # Tasks of a group wait for the same ones, so that groups have no cycle where tasks have none.
        ready = next(unit for unit in waiting if placed.issuperset(unit[1][0].after))
        waiting.remove(ready)
        tasks = tuple(draft.name for draft in ready[1])
        placed.update(tasks)
        units.append((ready[0], tasks))
    return units


def limit_of(array: bool | int | str) -> int | None:
    """How many of an array run at once, as the field says it."""
    return None if isinstance(array, bool) else int(str(array).removeprefix("%"))
