"""The index of all experiments: one SQLite file, written by many processes at once.

It holds what listings need. Everything else about an experiment stands in its folder, and an index that is
gone is made anew of the folders in nemorun's home.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nemorun.errors import DiscoveryError, StoreError, did_you_mean
from nemorun.experiment.schema import migrate
from nemorun.job import JobState, JobStatus, Reason
from nemorun.workspace import home

#: How long one writer waits for another, in seconds.
_PATIENCE = 30.0
_STATUS = ("state", "reason", "message", "exit_code", "attempt", "started_at", "ended_at")


@dataclass(frozen=True)
class TaskEntry:
    name: str
    run_dir: Path
    executor: str
    """The executor's kind."""
    handle: str | None = None
    status: JobStatus = field(default_factory=lambda: JobStatus(JobState.PENDING))


@dataclass(frozen=True)
class Entry:
    """One experiment, as listings show it."""

    id: str
    name: str
    folder: Path
    created_at: float
    """Seconds since the epoch."""
    tasks: tuple[TaskEntry, ...]

    @property
    def state(self) -> JobState:
        return overall(task.status.state for task in self.tasks)


def overall(states: Iterable[JobState]) -> JobState:
    """An experiment's state: RUNNING from its first task's start to its last one's end, then the worst."""
    seen = set(states)
    if not all(state.ended for state in seen):
        if JobState.RUNNING not in seen and JobState.UNKNOWN in seen:
            return JobState.UNKNOWN
        return JobState.PENDING if seen == {JobState.PENDING} else JobState.RUNNING
    worst = (JobState.FAILED, JobState.CANCELLED, JobState.SUCCEEDED)
    return next((state for state in worst if state in seen), JobState.SUCCEEDED)


def add(entry: Entry) -> None:
    """Write a new experiment, whole or not at all."""
    with _transaction() as db:
        _insert(db, entry)


def _insert(db: sqlite3.Connection, entry: Entry) -> None:
    """Does nothing for one that is there: another process has found its folder already."""
    db.execute(
        "INSERT OR IGNORE INTO experiments (id, name, folder, created_at) VALUES (?, ?, ?, ?)",
        (entry.id, entry.name, str(entry.folder), entry.created_at),
    )
    db.executemany(
        "INSERT OR IGNORE INTO tasks (experiment, position, name, run_dir, executor) VALUES (?, ?, ?, ?, ?)",
        [(entry.id, n, task.name, str(task.run_dir), task.executor) for n, task in enumerate(entry.tasks)],
    )


def _rebuild(db: sqlite3.Connection) -> None:
    """Fill a new index with the experiments that are there already, if any."""
    folder = home() / "experiments"
    if folder.is_dir():
        from nemorun.experiment.rebuild import recorded

        for entry in recorded(folder):
            _insert(db, entry)


def set_handles(experiment: str, handles: Mapping[str, str]) -> None:
    """Task name -> the executor's own id, as its `submit` returned them."""
    with _transaction() as db:
        db.executemany(
            "UPDATE tasks SET handle = ? WHERE experiment = ? AND name = ?",
            [(handle, experiment, name) for name, handle in handles.items()],
        )


def update(experiment: str, statuses: Mapping[str, JobStatus]) -> Entry:
    """Write what was polled; returns the experiment as it stands then.

    A task that has ended stays as it is, whatever a late poll says. Raises DiscoveryError.
    """
    columns = ", ".join(f"{column} = :{column}" for column in _STATUS)
    rows = [{**asdict(status), "experiment": experiment, "name": name} for name, status in statuses.items()]
    for row in rows:
        row["state"], row["reason"] = row["state"].value, row["reason"].value
    with _transaction() as db:
        db.executemany(
            f"UPDATE tasks SET {columns} WHERE experiment = :experiment AND name = :name "
            "AND state NOT IN ('SUCCEEDED', 'FAILED', 'CANCELLED')",
            rows,
        )
        found = _find(db, "WHERE id = ?", experiment)
    return _only(found, experiment)


def get(experiment: str) -> Entry:
    """The experiment of that full ID, as last written. Raises DiscoveryError."""
    return _only(_select("WHERE id = ?", experiment), experiment)


def _only(found: list[Entry], experiment: str) -> Entry:
    if not found:
        raise DiscoveryError(f"there is no experiment '{experiment}'")
    return found[0]


def entries(limit: int | None = None) -> list[Entry]:
    """The last `limit` experiments (all without), newest first."""
    return _select("ORDER BY number DESC LIMIT ?", -1 if limit is None else limit)


def resolve(text: str) -> str:
    """The full ID for an ID, the beginning of one, a name (its latest) or `-N` (the N-th last).

    Raises DiscoveryError that lists the candidates.
    """
    if text.startswith("-") and text[1:].isdecimal() and int(text) < 0:
        if found := _select("ORDER BY number DESC LIMIT 1 OFFSET ?", -int(text) - 1):
            return found[0].id
        raise DiscoveryError(f"there is no experiment '{text}'; {_last_ones(text)}")
    for condition in ("WHERE id = ?", "WHERE name = ? ORDER BY number DESC LIMIT 1"):
        if found := _select(condition, text):
            return found[0].id
    found = _select("WHERE substr(id, 1, length(?1)) = ?1 AND ?1 <> '' ORDER BY number DESC", text)
    if len(found) == 1:
        return found[0].id
    if found:
        raise DiscoveryError(
            f"{len(found)} experiments begin with '{text}'; give more letters: {_listed(found)}"
        )
    raise DiscoveryError(f"there is no experiment '{text}'; {_last_ones(text)}")


def _last_ones(text: str) -> str:
    last = entries(5)
    names = {name for entry in last for name in (entry.id, entry.name)}
    return f"the last are: {_listed(last)}{did_you_mean(text, names)}" if last else "there are none yet"


def _listed(found: list[Entry]) -> str:
    def when(entry: Entry) -> str:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.created_at))

    shown = ", ".join(f"{entry.id} ({entry.name}, {when(entry)})" for entry in found[:8])
    return shown + (f" and {len(found) - 8} more" if len(found) > 8 else "")


def _select(condition: str, *values: object) -> list[Entry]:
    with _transaction("DEFERRED") as db:
        return _find(db, condition, *values)


def _find(db: sqlite3.Connection, condition: str, *values: object) -> list[Entry]:
    experiments = db.execute(f"SELECT * FROM experiments {condition}", values).fetchall()
    tasks: dict[str, list[TaskEntry]] = {row["id"]: [] for row in experiments}
    marks = ", ".join("?" * len(tasks))
    for row in db.execute(
        f"SELECT * FROM tasks WHERE experiment IN ({marks}) ORDER BY position", list(tasks)
    ):
        tasks[row["experiment"]].append(
            TaskEntry(row["name"], Path(row["run_dir"]), row["executor"], row["handle"], _status(row))
        )
    return [
        Entry(row["id"], row["name"], Path(row["folder"]), row["created_at"], tuple(tasks[row["id"]]))
        for row in experiments
    ]


def _status(row: sqlite3.Row) -> JobStatus:
    values = {column: row[column] for column in _STATUS}
    return JobStatus(**{**values, "state": JobState(row["state"]), "reason": Reason(row["reason"])})


@contextmanager
def _transaction(kind: str = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
    path = home() / "nemorun.db"
    try:
        with closing(_open(path, reading=kind == "DEFERRED")) as db:  # rolls back what was not committed
            db.row_factory = sqlite3.Row
            db.execute(f"BEGIN {kind}")
            yield db
            db.execute("COMMIT")
    except (sqlite3.Error, OSError, UnicodeEncodeError) as error:
        damaged = type(error) is sqlite3.DatabaseError  # and not one of its kinds: locked, full, read-only …
        advice = "; move it away, and it is made anew from the experiments' folders" if damaged else ""
        why = "the disk is full" if _is_full(path.parent) else error
        raise StoreError(f"the experiment store {path} cannot be used: {why}{advice}") from error


def _open(path: Path, reading: bool) -> sqlite3.Connection:
    """A connection to the index, its tables up to date."""
    try:
        if not path.exists():
            os.close(os.open(path, os.O_CREAT, 0o600))
        db = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
        try:
            migrate(db, _rebuild)
        except BaseException:
            db.close()
            raise
        return db
    except sqlite3.OperationalError:
        writable = os.access(path.parent, os.W_OK) and not _is_full(path.parent)
        if writable or not (reading and path.stat().st_size):
            raise
        # Its lock and its log need room even to read it. Nobody can write now, so it can be read without.
        return sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True, isolation_level=None)


def _is_full(folder: Path) -> bool:
    return shutil.disk_usage(folder).free < 1 << 17
