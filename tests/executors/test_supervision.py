"""Deaths at bad moments: of the launcher, the supervisor, its guard; and several commands at once."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from nemorun.errors import StoreError, SubmitError
from nemorun.executors.local.journal import Journal, read, try_lock
from nemorun.job import JobRef, JobState, Reason

from .conftest import Bench, alive, wait_until

WAIT = (
    "import pathlib, time\npathlib.Path('started').touch()\n"
    "while not pathlib.Path('go').exists(): time.sleep(0.01)\n"
)
#: Counts its starts, and leaves a daemon behind that the rank's group knows nothing of.
DAEMON = (
    "import os, subprocess, sys\nopen('starts', 'a').write('x')\n"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
    + WAIT
)

needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux's /proc")


def started(bench: Bench) -> int:
    """The supervisor's pid, once its task runs."""
    wait_until(bench.path("started").exists)
    return bench.supervisor()


def no_processes(bench: Bench) -> bool:
    return bench.processes() == []


@needs_proc
def test_the_supervisors_death_ends_everything_and_is_written_down_unasked(bench: Bench) -> None:
    bench.add("a", python=DAEMON)
    bench.add("b", python="pass", dependencies=("a",))
    bench.submit()
    os.kill(started(bench), signal.SIGKILL)
    wait_until(lambda: no_processes(bench))
    wait_until(lambda: len(bench.events("ended")) == 2)  # nobody polled
    for status in bench.wait().values():
        assert (status.state, status.reason) == (JobState.FAILED, Reason.LOST)
        assert "its supervisor died" in status.message
    assert bench.path("starts").read_text() == "x"


@needs_proc
def test_with_the_guard_dead_too_the_next_command_tells_the_truth(bench: Bench) -> None:
    bench.add("a", python=DAEMON)
    bench.add("b", python="pass", dependencies=("a",))
    bench.submit()
    supervisor = started(bench)
    (guard,) = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and alive(int(entry.name))
        and str(bench.folder).encode() in (entry / "cmdline").read_bytes()
        and b"supervisor" in (entry / "cmdline").read_bytes() and int(entry.name) != supervisor
    ]  # fmt: skip
    os.kill(guard, signal.SIGKILL)
    os.kill(supervisor, signal.SIGKILL)
    statuses = bench.wait()
    assert {(status.state, status.reason) for status in statuses.values()} == {(JobState.FAILED, Reason.LOST)}
    assert no_processes(bench)
    assert bench.wait() == statuses


def test_a_rank_ends_itself_when_the_supervisor_is_gone(bench: Bench) -> None:
    """What remains where there is no /proc, and the guard was killed: the end of the lifeline."""
    reading, writing = os.pipe()
    worker = subprocess.Popen(
        [sys.executable, "-m", "nemorun.worker", "--command", "--", "sleep", "600"],
        env={**os.environ, "NEMORUN_LIFELINE": str(reading), "NEMORUN_TOKEN": "bench.alone"},
        pass_fds=(reading,), start_new_session=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    os.close(reading)
    os.close(writing)
    assert worker.wait(60) == -signal.SIGKILL
    assert worker.stdout and worker.stdout.read() == b""  # ends only when the child has closed it, too


def test_what_was_never_submitted_is_told_and_never_starts_afterwards(bench: Bench) -> None:
    bench.add(python="open('ran', 'w')")
    status = bench.status()
    assert (status.state, status.reason) == (JobState.FAILED, Reason.NOT_SUBMITTED)
    with pytest.raises(SubmitError, match="submit it anew"):
        bench.submit()
    assert bench.status() == status and not bench.path("ran").exists()


def test_a_launcher_killed_with_the_plan_written_has_submitted_nothing(bench: Bench) -> None:
    bench.add(python="open('ran', 'w')")
    local = bench.path("local")
    local.mkdir()
    (local / "plan.json").write_text(bench.executor.render(bench.jobs).text)
    assert bench.status().reason == Reason.NOT_SUBMITTED


def test_while_a_launcher_holds_the_lock_nothing_is_decided(bench: Bench) -> None:
    bench.add(python="pass")
    local = bench.path("local")
    local.mkdir()
    lock = try_lock(local)
    assert lock is not None
    assert bench.status().state == JobState.PENDING
    os.close(lock)
    assert bench.status().reason == Reason.NOT_SUBMITTED


def test_submitting_again_starts_nothing_new(bench: Bench) -> None:
    bench.add(python="open('starts', 'a').write('x')\n" + WAIT)
    bench.submit()
    bench.submit()
    started(bench)
    bench.submit()
    bench.path("go").touch()
    bench.wait()
    bench.submit()
    assert bench.wait()["task"].attempt == 1
    assert bench.path("starts").read_text() == "x"


def test_another_plan_in_the_same_folder_is_refused(bench: Bench) -> None:
    bench.run("pass")
    bench.add("more", python="pass")
    with pytest.raises(SubmitError, match="another submission"):
        bench.submit()


def test_two_launchers_of_one_plan_start_it_once(make_bench: Callable[..., Bench]) -> None:
    for round_ in range(5):
        bench = make_bench(f"bench{round_}")
        bench.add(python="open('starts', 'a').write('x')")
        threads = [threading.Thread(target=bench.submit) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert bench.wait()["task"].state == JobState.SUCCEEDED
        assert bench.path("starts").read_text() == "x"
        assert len(bench.events("submitted")) == 1


def test_polls_at_the_same_time_write_one_end(bench: Bench) -> None:
    for number in range(3):
        bench.add(f"t{number}", python=WAIT)
    bench.submit()
    os.kill(started(bench), signal.SIGKILL)
    threads = [threading.Thread(target=bench.wait) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(event["task"] for event in bench.events("ended")) == ["t0", "t1", "t2"]


def test_a_folder_that_is_gone_is_unknown(bench: Bench, tmp_path: Path) -> None:
    ref = JobRef("x", "gone.x", str(tmp_path / "gone" / "tasks" / "x"))
    status = bench.executor.poll([ref])["gone.x"]
    assert status.state == JobState.UNKNOWN and "is gone" in status.message
    assert not (tmp_path / "gone").exists()


def test_another_machines_run_is_left_alone(bench: Bench) -> None:
    """Homes are shared among machines: what cannot be seen from here is not declared dead."""
    bench.add(python="pass")
    bench.path("local").mkdir()
    journal = Journal(bench.path("local") / "journal.jsonl")
    journal.append(
        "submitted", pid=1, identity="other:1", host="elsewhere", tasks={"task": bench.ref().token}
    )
    journal.append("started", task="task", attempt=1, ranks=[[os.getpid(), "other:2"]])
    status = bench.status()
    assert status.state == JobState.UNKNOWN and "elsewhere" in status.message
    journal.append("ended", task="task", state="SUCCEEDED", reason="", message="")
    assert bench.status().state == JobState.SUCCEEDED


def test_a_pid_that_was_used_again_is_not_killed(bench: Bench) -> None:
    bench.add(python="pass")
    bench.path("local").mkdir()
    journal = Journal(bench.path("local") / "journal.jsonl")
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as stranger:
        journal.append(
            "submitted", pid=1, identity="gone", host=os.uname().nodename, tasks={"task": bench.ref().token}
        )
        journal.append("started", task="task", attempt=1, ranks=[[stranger.pid, "another boot:1"]])
        assert bench.status().reason == Reason.LOST
        assert stranger.poll() is None
        stranger.kill()


def test_a_torn_line_is_passed_over_and_not_built_upon(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.append("submitted", pid=1, identity="x", host="h", tasks={"a": "e.a"})
    with path.open("ab") as file:
        file.write(b'{"time": 1, "event": "ended", "ta')
    assert read(path).tasks["a"].status.state == JobState.PENDING
    Journal(path).append("ended", task="a", state="FAILED", reason=Reason.LOST, message="m")
    assert read(path).tasks["a"].status.state == JobState.FAILED


@needs_proc
def test_a_full_disk_ends_the_tasks_and_says_why(bench: Bench) -> None:
    """The journal's file may not grow any more: as on a full disk, its write fails while ranks run."""
    bench.executor.max_parallel = 2
    bench.add("a", python=DAEMON)
    bench.add("b", python="import pathlib, time\nwhile not pathlib.Path('full').exists(): time.sleep(0.01)\n")
    bench.submit()
    supervisor = started(bench)
    wait_until(lambda: len(bench.events("started")) == 2)
    journal = bench.path("local") / "journal.jsonl"
    # Some bytes are left, so that the line is torn, too.
    resource.prlimit(supervisor, resource.RLIMIT_FSIZE, (journal.stat().st_size + 20, resource.RLIM_INFINITY))
    bench.path("full").touch()
    wait_until(lambda: not alive(supervisor))
    wait_until(lambda: no_processes(bench))
    assert {status.state for status in bench.wait().values()} == {JobState.FAILED}
    log = (bench.path("local") / "supervisor.log").read_text()
    assert log.startswith("the supervisor could not go on: ") and "File too large" in log


def test_ranks_do_not_keep_the_lock(bench: Bench) -> None:
    """Else a supervisor's death would go unnoticed while a rank lives."""
    bench.add(python="import os\nfor fd in os.listdir('/dev/fd'):\n    print(fd)\n")
    bench.submit()
    bench.wait()
    lock = wait_until(lambda: try_lock(bench.path("local")))
    fcntl.flock(lock, fcntl.LOCK_UN)
    os.close(lock)
    assert {int(fd) for fd in bench.log().split()} <= {0, 1, 2, 3}


@needs_proc
def test_a_run_whose_record_was_deleted_ends(bench: Bench) -> None:
    """Nobody could see it or cancel it any more."""
    bench.add(python=DAEMON)
    bench.submit()
    supervisor = started(bench)
    wait_until(bench.path("starts").exists)
    shutil.rmtree(bench.path("local"))
    os.kill(supervisor, signal.SIGUSR1)  # it looks by itself, too, but seldom
    wait_until(lambda: not alive(supervisor))
    assert no_processes(bench)


@needs_proc
def test_cancelling_works_on_a_full_disk(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file can be made to say so; a signal will do where all is meant."""
    bench.add("a", python=DAEMON)
    bench.add("b", python="pass", dependencies=("a",))
    bench.submit()
    started(bench)
    wait_until(bench.path("starts").exists)
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(Path, "touch", Mock(side_effect=full))
    with pytest.raises(StoreError, match="one task cannot be cancelled"):
        bench.executor.cancel([bench.ref("a")])
    bench.executor.cancel(bench.refs)
    assert {status.state for status in bench.wait().values()} == {JobState.CANCELLED}


def test_a_supervisor_that_cannot_start_tells_where_it_says_why(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "select.py").write_text("raise ImportError('a module of yours')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    bench.add(python="pass")
    bench.submit()
    status = bench.wait()["task"]
    assert status.reason == Reason.NOT_SUBMITTED and "supervisor.log says why" in status.message
