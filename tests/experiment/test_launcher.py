"""The launcher dies or is interrupted at any moment: the record stays true and nothing starts twice."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from nemorun.config import load_script
from nemorun.errors import StoreError, SubmitUnclear
from nemorun.executors.base import Rendered
from nemorun.executors.local import LocalExecutor
from nemorun.experiment import Experiment, records, store
from nemorun.experiment.record import submission_lock
from nemorun.job import JobRef, JobState, JobStatus, Reason

SCRIPT = """
import nemorun as run
from jobs import {task}
experiment = run.Experiment("launched", executor=run.LocalExecutor(grace_period=1))
experiment.add({task})
experiment.run()
"""


def launcher(folder: Path, task: str) -> subprocess.Popen[bytes]:
    (folder / "launch.py").write_text(SCRIPT.format(task=task))
    return subprocess.Popen(
        [sys.executable, "launch.py"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.01)


def test_killed_at_any_moment(folder: Path) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    rounds = 15
    for _ in range(rounds):
        process = launcher(folder, "note")
        try:
            process.wait(dice.uniform(0, 0.8))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    found = records()
    for record in found:
        record.wait()
    starts = len((folder / "ran.txt").read_text().splitlines()) if (folder / "ran.txt").exists() else 0
    succeeded = sum(record.state is JobState.SUCCEEDED for record in found)
    never = sum(record.statuses["note"].reason is Reason.NOT_SUBMITTED for record in found)
    assert starts == succeeded, "each that ran, ran once, and is known"
    assert succeeded + never == len(found) <= rounds


def test_nobody_judges_a_submission_that_is_under_way(folder: Path) -> None:
    process = launcher(folder, "note")
    assert process.wait(60) == 0
    (record,) = records()
    with submission_lock(record.folder, wait=True):
        record.statuses["note"] = record.statuses["note"].__class__(JobState.PENDING)
        assert not record.refresh() and record.state is JobState.PENDING
    assert record.refresh() or record.state is JobState.SUCCEEDED


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -15), (signal.SIGINT, -2)])
def test_an_interrupted_launcher_cancels(folder: Path, number: int, code: int) -> None:
    process = launcher(folder, "hang")
    until((folder / "ran.txt").exists)
    os.kill(process.pid, number)
    assert process.wait(30) == code
    (record,) = records()
    assert record.state is JobState.CANCELLED


def test_a_record_that_was_deleted_does_not_hide_the_others(folder: Path) -> None:
    for _ in range(2):
        assert launcher(folder, "note").wait(60) == 0
    deleted, kept = records()
    with sqlite3.connect(Path(os.environ["NEMORUN_HOME"]) / "nemorun.db") as db:
        db.execute("UPDATE tasks SET state = 'RUNNING' WHERE experiment = ?", [deleted.id])
    shutil.rmtree(deleted.folder)
    assert [(record.id, record.state.value) for record in records()] == [
        (deleted.id, "UNKNOWN"),
        (kept.id, "SUCCEEDED"),
    ]


def test_a_refused_submission_is_recorded_as_such(folder: Path, nemorun_home: Path) -> None:
    """The second executor refuses; the first one's task is cancelled."""
    (folder / "launch.py").write_text(
        "from dataclasses import dataclass\nimport nemorun as run\nfrom nemorun.errors import SubmitError\n"
        "from jobs import hang, note\n\n"
        "@dataclass\nclass Refusing(run.LocalExecutor):\n"
        "    def submit(self, rendered, secrets):\n        raise SubmitError('no room for you')\n\n"
        "if __name__ == '__main__':\n"
        "    experiment = run.Experiment('two')\n"
        "    experiment.add(hang, executor=run.LocalExecutor(grace_period=1))\n"
        "    experiment.add(note, executor=Refusing())\n"
        "    experiment.run()\n"
    )
    done = subprocess.run([sys.executable, "launch.py"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "no room for you" in done.stderr
    (record,) = records(ask=False)
    assert record.statuses["note"].reason is Reason.NOT_SUBMITTED
    record.refresh()
    assert record.statuses["hang"].state is JobState.CANCELLED


def test_a_submission_that_may_have_arrived_is_looked_for_later(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It arrived, but the launcher could not be told: nothing is called failed, or cancelled."""
    submit = LocalExecutor.submit

    def submit_and_lose(self: LocalExecutor, rendered: Rendered, secrets: dict[str, str]) -> dict[str, str]:
        submit(self, rendered, secrets)
        raise SubmitUnclear("the connection was lost")

    monkeypatch.setattr(LocalExecutor, "submit", submit_and_lose)
    experiment = Experiment("lost")
    experiment.add(load_script(folder / "jobs.py").double)
    with pytest.raises(SubmitUnclear):
        experiment.run()
    (record,) = records(ask=False)
    assert record.statuses["double"].state is JobState.PENDING
    record.wait()
    assert record.state is JobState.SUCCEEDED


def test_experiments_of_one_place_are_asked_for_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = load_script(folder / "jobs.py")
    for grace_period in (1, 1, 2):
        hanging = Experiment("hanging", executor=LocalExecutor(grace_period=grace_period, nodes=1))
        hanging.add(jobs.hang)
        hanging.run(detach=True)
    asked: list[int] = []
    poll = LocalExecutor.poll

    def counted(self: LocalExecutor, refs: list[JobRef]) -> dict[str, JobStatus]:
        asked.append(len(refs))
        return poll(self, refs)

    with monkeypatch.context() as patch:
        patch.setattr(LocalExecutor, "poll", counted)
        found = records()
    assert sorted(asked) == [1, 2]
    for record in found:
        record.cancel()


@pytest.mark.parametrize("limit", [0, 200, 600, 4096, 20_000])
def test_a_full_disk_leaves_a_clear_error_and_nothing_else(
    folder: Path, nemorun_home: Path, limit: int
) -> None:
    """No file may grow beyond `limit` bytes: as on a full disk, the write fails at one stage or another."""
    assert launcher(folder, "note").wait(60) == 0
    before = sorted((nemorun_home / "experiments").iterdir())
    (folder / "full.py").write_text(
        f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        + SCRIPT.format(task="double")
    )
    full = subprocess.run([sys.executable, "full.py"], capture_output=True, text=True, timeout=300)
    last = full.stderr.splitlines()[-1]
    assert last.startswith(("nemorun.errors.PackagingError", "nemorun.errors.StoreError")), full.stderr
    assert sorted((nemorun_home / "experiments").iterdir()) == before
    assert launcher(folder, "note").wait(60) == 0
    assert [record.state for record in records()] == [JobState.SUCCEEDED] * 2


def test_an_index_that_cannot_be_written_does_not_stop_a_run(
    folder: Path, nemorun_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is followed to its end by what the executor says, and the next command writes that down."""
    experiment = Experiment("kept")
    experiment.add(load_script(folder / "jobs.py").double)
    full = StoreError("the disk is full")
    with monkeypatch.context() as patch:
        for name in ("update", "set_handles"):
            patch.setattr(store, name, Mock(side_effect=full))
        assert experiment.run().value == 42
    assert store.get(experiment.id).state is JobState.PENDING
    assert [record.state for record in records()] == [JobState.SUCCEEDED]


def test_a_lost_index_is_made_anew(folder: Path, nemorun_home: Path) -> None:
    for task in ("note", "double", "boom"):
        launcher(folder, task).wait(60)
    running = launcher(folder, "hang")
    until(lambda: "hang" in (folder / "ran.txt").read_text())
    known = [(r.id, r.name, r.folder, r.state, r.run_dirs, int(r.created_at)) for r in records()]
    (nemorun_home / "experiments" / "not-ours").mkdir()
    (nemorun_home / "experiments" / "not-ours" / "experiment.yaml").write_text("{}")
    with (known[1][2] / "experiment.yaml").open("a") as text:
        text.write('file: "\\uDCE9"\n')  # as a name of a file that is no UTF-8 is written
    for file in nemorun_home.glob("nemorun.db*"):
        file.unlink()
    found = records()
    assert [(r.id, r.name, r.folder, r.state, r.run_dirs, int(r.created_at)) for r in found] == known
    Experiment.from_id("-1").cancel()
    running.wait(30)
    assert records()[0].state is JobState.CANCELLED


def test_a_damaged_index_says_what_to_do(nemorun_home: Path) -> None:
    nemorun_home.mkdir()
    (nemorun_home / "nemorun.db").write_bytes(b"no database" * 100)
    with pytest.raises(StoreError, match="not a database; move it away, and it is made anew"):
        records()
