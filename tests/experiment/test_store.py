"""The index: many writers, one truth, and every way to name an experiment."""

import json
import os
import resource
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nemorun.errors import DiscoveryError, StoreError
from nemorun.experiment import store
from nemorun.experiment.ids import new_id
from nemorun.experiment.schema import MIGRATIONS, migrate
from nemorun.job import JobState, JobStatus, Reason

WRITER = """
import sys
from pathlib import Path
from nemorun.experiment import store
from nemorun.experiment.ids import new_id
from nemorun.job import JobState, JobStatus

for _ in range(10):
    id = new_id()
    store.add(store.Entry(id, "many", Path("/x") / id, 0.0, (store.TaskEntry("t", Path("/x"), "local"),)))
    store.set_handles(id, {"t": "h"})
    store.update(id, {"t": JobStatus(JobState.SUCCEEDED)})
"""


def add(id: str, name: str = "train", tasks: tuple[str, ...] = ("a",)) -> None:
    entries = tuple(store.TaskEntry(task, Path("/x") / id / task, "local") for task in tasks)
    store.add(store.Entry(id, name, Path("/x") / id, time.time(), entries))


def test_what_is_written_is_read(nemorun_home: Path) -> None:
    add("abcdefgh", tasks=("b", "a"))
    status = JobStatus(JobState.FAILED, Reason.TIMEOUT, "too long", 3, 2, 1.5, 2.5)
    store.update("abcdefgh", {"b": status})
    store.set_handles("abcdefgh", {"a": "job-7"})
    entry = store.get("abcdefgh")
    assert [(task.name, task.status, task.handle) for task in entry.tasks] == [
        ("b", status, None),
        ("a", JobStatus(JobState.PENDING), "job-7"),
    ]
    assert entry.tasks[0].run_dir == Path("/x/abcdefgh/b")
    assert stat.S_IMODE((nemorun_home / "nemorun.db").stat().st_mode) == 0o600


def test_an_end_is_final() -> None:
    add("abcdefgh")
    for state in (JobState.RUNNING, JobState.CANCELLED, JobState.RUNNING, JobState.SUCCEEDED):
        store.update("abcdefgh", {"a": JobStatus(state)})
    assert store.get("abcdefgh").state is JobState.CANCELLED


def test_many_processes_write_at_once() -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER]) for _ in range(8)]
    assert [writer.wait(60) for writer in writers] == [0] * 8
    found = store.entries()
    assert len(found) == len({entry.id for entry in found}) == 80
    assert {(entry.state, entry.tasks[0].handle) for entry in found} == {(JobState.SUCCEEDED, "h")}


def test_a_newer_store_is_not_touched(nemorun_home: Path) -> None:
    add("abcdefgh")
    with sqlite3.connect(nemorun_home / "nemorun.db") as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(StoreError, match=r"newer nemorun.*upgrade"):
        store.entries()


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    db = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
    migrate(db)
    monkeypatch.setattr(
        "nemorun.experiment.schema.MIGRATIONS", (*MIGRATIONS, ("CREATE TABLE extra (x)", "CREATE NONSENSE"))
    )
    with pytest.raises(sqlite3.OperationalError):
        migrate(db)
    db.close()
    with sqlite3.connect(tmp_path / "x.db") as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert db.execute("SELECT * FROM sqlite_master WHERE name = 'extra'").fetchall() == []


def test_a_store_that_is_none_is_an_error(nemorun_home: Path) -> None:
    add("abcdefgh")
    (nemorun_home / "nemorun.db").write_text("this is no database, whatever it is called " * 20)
    with pytest.raises(StoreError, match=r"nemorun\.db cannot be used"):
        store.entries()


def test_every_way_to_name_an_experiment() -> None:
    add("abcdefgh", "train")
    add("abzzzzzz", "train")
    add("bcdefghi", "eval")
    assert store.resolve("abcdefgh") == store.resolve("abc") == store.resolve("-3") == "abcdefgh"
    assert store.resolve("train") == store.resolve("-2") == "abzzzzzz"
    assert store.resolve("-1") == store.resolve("b") == "bcdefghi"
    with pytest.raises(DiscoveryError, match=r"2 experiments begin with 'ab'.*abzzzzzz \(train.*abcdefgh"):
        store.resolve("ab")
    for text in ("-4", "trian", "", "%", "-0"):
        with pytest.raises(DiscoveryError, match="there is no experiment"):
            store.resolve(text)
    with pytest.raises(DiscoveryError, match=r"bcdefghi \(eval.*did you mean 'train'\?"):
        store.resolve("trian")


def test_an_empty_store_says_so() -> None:
    with pytest.raises(DiscoveryError, match="there are none yet"):
        store.resolve("-1")
    assert store.entries() == []


def test_entries_come_newest_first_and_limited() -> None:
    for id in ("aaaaaaaa", "bbbbbbbb", "cccccccc"):
        add(id)
    assert [entry.id for entry in store.entries(2)] == ["cccccccc", "bbbbbbbb"]


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ("PENDING PENDING", "PENDING"),
        ("SUCCEEDED PENDING", "RUNNING"),
        ("FAILED RUNNING", "RUNNING"),
        ("UNKNOWN SUCCEEDED", "UNKNOWN"),
        ("UNKNOWN RUNNING", "RUNNING"),
        ("SUCCEEDED FAILED CANCELLED", "FAILED"),
        ("SUCCEEDED CANCELLED", "CANCELLED"),
        ("SUCCEEDED SUCCEEDED", "SUCCEEDED"),
    ],
)
def test_an_experiment_stands_as_its_tasks_do(states: str, expected: str) -> None:
    assert store.overall(JobState(state) for state in states.split()) is JobState(expected)


def test_ids_are_no_numbers_and_differ() -> None:
    ids = {new_id() for _ in range(2000)}
    assert len(ids) == 2000
    assert all(len(id) == 8 and id[0].isalpha() and json.dumps(id).islower() for id in ids)


def test_a_full_disk_does_not_keep_the_index_from_being_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's log needs room even for a reader, and a run must still be found to be cancelled."""
    add("abcdefgh")
    monkeypatch.setattr(store, "_is_full", lambda folder: True)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        found = store.entries()
        with pytest.raises(StoreError, match="the disk is full"):
            add("bcdefgha")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert [entry.id for entry in found] == ["abcdefgh"]


def test_a_path_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    """A folder's name may hold bytes that are no UTF-8; the index cannot."""
    with pytest.raises(StoreError, match="surrogates not allowed"):
        store.add(store.Entry("abcdefgh", "n", Path(os.fsdecode(b"/x\xe9")), 0.0, ()))
