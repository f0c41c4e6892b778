"""Every way for a task to end badly, told apart and told in plain words; and what is started again."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nemorun.executors.local import processes
from nemorun.executors.local.supervisor import MAX_PREEMPTIONS
from nemorun.job import EXIT_RESUME, JobState, Reason, Resources

from .conftest import Bench, alive, text_in, wait_until

FOREVER = "import time\nwhile True: time.sleep(0.01)\n"
#: A program that ends in another way at each attempt.
BY_ATTEMPT = "import os, signal, sys\nattempt = int(os.environ['NEMORUN_ATTEMPT'])\n"


def script(bench: Bench, source: str) -> str:
    """A task.yaml that calls `main` of a script with this source."""
    path = bench.path("script.py")
    path.write_text(source, encoding="utf-8")
    return f"_target_: script:{path}:main\n_partial_: true\n"


def test_an_exit_code(bench: Bench) -> None:
    status = bench.run("raise SystemExit(3)")
    assert (status.state, status.reason, status.exit_code) == (JobState.FAILED, Reason.EXIT_CODE, 3)
    assert status.message == "it ended with exit code 3"


def test_an_exception_is_named_and_its_traceback_starts_at_the_users_code(bench: Bench) -> None:
    status = bench.run(
        yaml=script(bench, "def main():\n    print('before')\n    raise ValueError('no such luck')\n")
    )
    assert (status.state, status.reason, status.exit_code) == (JobState.FAILED, Reason.EXIT_CODE, 1)
    assert status.message == "it raised ValueError: no such luck"
    excerpt = bench.executor.excerpt(bench.ref())
    assert excerpt.startswith("Traceback") and excerpt.endswith("ValueError: no such luck")
    assert excerpt.count("File ") == 1 and "script.py" in excerpt and "before" not in excerpt


def test_the_first_failing_rank_is_named_not_its_echo(bench: Bench) -> None:
    """Rank 1 raises first and takes long to end; rank 0 notices and is gone before it."""
    source = (
        "import atexit, os, pathlib, time\n"
        "def wait(name):\n    while not pathlib.Path(name).exists(): time.sleep(0.005)\n"
        "class Echo(Exception): pass\n"
        "def main():\n"
        "    if os.environ['RANK'] == '1':\n"
        "        atexit.register(wait, 'echoed')\n"
        "        raise ValueError('the cause')\n"
        "    folder = pathlib.Path(os.environ['NEMORUN_RUN_DIR'], 'logs', 'attempt-1')\n"
        "    wait(folder / 'rank-1.failure')\n"
        "    atexit.register(lambda: pathlib.Path('echoed').touch())\n"
        "    raise Echo('connection closed')\n"
    )
    status = bench.run(yaml=script(bench, source), resources=Resources(ntasks_per_node=2))
    assert status.message == "rank 1 of 2 raised ValueError: the cause"
    assert "the cause" in bench.executor.excerpt(bench.ref())


def test_a_crash_is_named_though_another_rank_speaks_of_it(bench: Bench) -> None:
    source = (
        "import os, pathlib, time\n"
        "def main():\n"
        "    pid = pathlib.Path('pid')\n"
        "    if os.environ['RANK'] == '0':\n"
        "        pid.write_text(str(os.getpid()))\n"
        "        os.kill(os.getpid(), 11)\n"
        "    while not pid.exists() or not pid.read_text(): time.sleep(0.005)\n"
        "    while pathlib.Path('/proc', pid.read_text()).exists(): time.sleep(0.005)\n"
        "    raise ConnectionError('peer is gone')\n"
    )
    status = bench.run(yaml=script(bench, source), resources=Resources(ntasks_per_node=2))
    assert (status.reason, status.message) == (Reason.SIGNAL, "rank 0 of 2 was ended by SIGSEGV")


def test_one_ranks_crash_stops_the_others(bench: Bench) -> None:
    code = "import os, sys, time\nif os.environ['RANK'] == '2': sys.exit(4)\n" + FOREVER
    status = bench.run(code, resources=Resources(ntasks_per_node=3))
    assert status.exit_code == 4 and status.message == "rank 2 of 3 ended with exit code 4"
    assert bench.events("attempt ended")[0]["codes"] == [-signal.SIGTERM, -signal.SIGTERM, 4]
    assert bench.processes() == []


def test_a_rank_that_ends_well_does_not_stop_the_others(bench: Bench) -> None:
    code = (
        "import os, pathlib, time\nrank = os.environ['RANK']\n"
        "while rank == '1' and not pathlib.Path('go').exists(): time.sleep(0.01)\n"
        "pathlib.Path('ended' + rank).touch()\n"
    )
    bench.add(python=code, resources=Resources(ntasks_per_node=2))
    bench.submit()
    wait_until(bench.path("ended0").exists)
    bench.path("go").touch()
    assert bench.wait()["task"].state == JobState.SUCCEEDED
    assert bench.path("ended1").exists()


def test_a_rank_that_ignores_sigterm_is_killed_after_the_grace_period(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench(grace_period=0.2)
    source = (
        "import os, pathlib, signal, sys, time\n"
        "def main():\n"
        "    if os.environ['RANK'] == '0':\n"
        "        while not pathlib.Path('deaf').exists(): time.sleep(0.01)\n"
        "        sys.exit(1)\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    pathlib.Path('deaf').touch()\n"
        "    while True: time.sleep(0.01)\n"
    )
    status = bench.run(yaml=script(bench, source), resources=Resources(ntasks_per_node=2))
    assert status.state == JobState.FAILED
    assert bench.events("attempt ended")[0]["codes"] == [1, -signal.SIGKILL]


def test_children_have_the_grace_period_too(bench: Bench) -> None:
    """A shell dies at once of SIGTERM; the program that it had started gets it as well, and may save."""
    child = bench.path("child.py")
    child.write_text(
        "import pathlib, signal, sys, time\n"
        "def save(*_):\n    time.sleep(0.3)\n    pathlib.Path('saved').touch()\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\npathlib.Path('ready').touch()\n"
        "while True: time.sleep(0.01)\n"
    )
    bench.add(command=("sh", "-c", f"{sys.executable} {child}; echo after"))
    bench.submit()
    wait_until(bench.path("ready").exists)
    bench.executor.cancel(bench.refs)
    assert bench.status().state == JobState.CANCELLED
    assert bench.path("saved").exists()
    assert bench.processes() == []


def test_what_ranks_leave_behind_is_killed(bench: Bench) -> None:
    """A child in the rank's group, one in a session of its own, and one that is a daemon."""
    code = (
        "import os, subprocess, sys\n"
        "loop = [sys.executable, '-c', 'import time\\nwhile True: time.sleep(0.01)']\n"
        "pids = [subprocess.Popen(loop).pid, subprocess.Popen(loop, start_new_session=True).pid]\n"
        "reading, writing = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    daemon = os.fork()\n"
        "    if daemon: os.write(writing, str(daemon).encode()); os._exit(0)\n"
        "    os.execv(loop[0], loop)\n"
        "pids.append(int(os.read(reading, 20)))\n"
        "print(*pids)\n"
    )
    assert bench.run(code).state == JobState.SUCCEEDED
    pids = [int(pid) for pid in bench.log().split()]
    assert len(pids) == 3 and not any(alive(pid) for pid in pids)


def test_a_signal(bench: Bench) -> None:
    status = bench.run("import os; os.kill(os.getpid(), 11)")
    assert (status.state, status.reason, status.exit_code) == (JobState.FAILED, Reason.SIGNAL, 128 + 11)
    assert status.message == "it was ended by SIGSEGV"


def test_sigkill_hints_at_memory(bench: Bench) -> None:
    status = bench.run("import os; os.kill(os.getpid(), 9)")
    assert (status.reason, status.exit_code) == (Reason.SIGNAL, 137)
    assert "may have run out of memory" in status.message


@pytest.mark.parametrize("error", ["MemoryError", "OutOfMemoryError"])
def test_out_of_memory_by_exception(bench: Bench, error: str) -> None:
    source = f"class OutOfMemoryError(RuntimeError): pass\ndef main(): raise {error}('tried to allocate')\n"
    assert bench.run(yaml=script(bench, source)).reason == Reason.OUT_OF_MEMORY


def test_the_kernels_count_of_memory_kills_is_read(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    events.write_text("low 0\nhigh 0\noom 4\noom_kill 3\noom_group_kill 9\n")
    assert processes._counter(events) == 3
    assert processes._counter(tmp_path / "none") is None
    if Path("/proc/vmstat").exists():
        assert (processes.out_of_memory_kills() or 0) >= 0


def test_a_program_that_does_not_exist(bench: Bench) -> None:
    status = bench.run(command=("no-such-program",))
    assert status.exit_code == 127 and "'no-such-program' cannot be started" in bench.log()


def test_a_rank_that_cannot_be_started(bench: Bench) -> None:
    status = bench.run("pass", cwd=str(bench.path("gone")))
    assert (status.state, status.reason) == (JobState.FAILED, Reason.NODE_FAILURE)
    assert "could not be started" in status.message and "gone" in status.message


def test_the_time_limit(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(time="0:01")
    status = bench.run(FOREVER, retries=1)
    assert (status.state, status.reason) == (JobState.FAILED, Reason.TIMEOUT)
    assert status.message == "it ran longer than its limit of 1 s (2 attempts)"  # a timeout costs a retry
    assert bench.processes() == []


def test_retries_until_it_works(bench: Bench) -> None:
    status = bench.run(BY_ATTEMPT + "print(attempt)\nsys.exit(attempt < 3)", retries=2)
    assert (status.state, status.attempt, status.exit_code) == (JobState.SUCCEEDED, 3, 0)
    assert [chunk.attempt for chunk in bench.chunks()] == [1, 2, 3]
    assert bench.log() == "1\n2\n3\n"


def test_retries_end_and_their_pauses_grow(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(backoff=0.01)
    status = bench.run(BY_ATTEMPT + "sys.exit(attempt)", retries=3)
    assert (status.state, status.attempt, status.exit_code) == (JobState.FAILED, 4, 4)
    assert status.message == "it ended with exit code 4 (4 attempts)"
    pauses = [event["message"].partition("again in ")[2] for event in bench.events("waiting")]
    assert pauses == ["0.01 s", "0.02 s", "0.04 s"]
    assert {event["reason"] for event in bench.events("waiting")} == {Reason.BACKOFF.value}


def test_a_pause_is_shown_and_can_be_cancelled(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(backoff=60)
    bench.add(python="raise SystemExit(3)", retries=1)
    bench.submit()
    wait_until(lambda: bench.status().reason == Reason.BACKOFF)
    assert bench.status().state == JobState.PENDING
    assert bench.status().message == "it ended with exit code 3; starts again in 60 s"
    bench.executor.cancel(bench.refs)
    assert bench.status().state == JobState.CANCELLED and bench.status().attempt == 1


def test_a_task_that_asks_to_be_resumed_costs_no_retry(bench: Bench) -> None:
    status = bench.run(BY_ATTEMPT + f"sys.exit({EXIT_RESUME} if attempt < 4 else 0)")
    assert (status.state, status.attempt) == (JobState.SUCCEEDED, 4)
    assert {event["reason"] for event in bench.events("attempt ended")[:3]} == {Reason.PREEMPTED.value}


def test_ranks_that_save_are_not_disturbed_by_the_first_that_is_done(bench: Bench) -> None:
    code = BY_ATTEMPT + (
        "import pathlib, time\n"
        "if attempt == 2: sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))\n"
        "if os.environ['RANK'] == '1': time.sleep(0.3); pathlib.Path('saved').touch()\n"
        f"sys.exit({EXIT_RESUME})\n"
    )
    status = bench.run(code, resources=Resources(ntasks_per_node=2))
    assert status.state == JobState.SUCCEEDED and bench.path("saved").exists()


def test_a_sigterm_from_outside_is_a_preemption(bench: Bench) -> None:
    code = BY_ATTEMPT + "\nif attempt == 1: os.kill(os.getpid(), signal.SIGTERM)\n"
    status = bench.run(code)
    assert (status.state, status.attempt) == (JobState.SUCCEEDED, 2)
    assert "SIGTERM, which nemorun did not send" in bench.events("attempt ended")[0]["message"]


def test_a_task_preempted_for_ever_is_given_up(make_bench: Callable[..., Bench]) -> None:
    status = make_bench(backoff=0).run(f"raise SystemExit({EXIT_RESUME})", retries=5)
    assert (status.state, status.reason) == (JobState.FAILED, Reason.PREEMPTED)
    assert status.attempt == MAX_PREEMPTIONS + 1


def test_a_dependent_never_runs_after_a_failure(bench: Bench) -> None:
    bench.add("a", python="raise SystemExit(1)", retries=1)
    bench.add("b", python="open('ran', 'w')", dependencies=("a",))
    bench.add("c", python="open('ran', 'w')", dependencies=("b",))
    bench.add("other", python="pass")
    bench.submit()
    statuses = bench.wait()
    assert statuses["a"].state == JobState.FAILED and statuses["other"].state == JobState.SUCCEEDED
    for name, message in (("b", "its dependency 'a' failed"), ("c", "its dependency 'b' failed")):
        status = statuses[name]
        assert (status.state, status.reason, status.message) == (
            JobState.FAILED, Reason.DEPENDENCY_FAILED, message,
        )  # fmt: skip
        assert status.attempt == 0
    assert not bench.path("ran").exists()


def test_one_task_is_cancelled_and_the_others_go_on(bench: Bench) -> None:
    wait = "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)\n"
    bench.executor.max_parallel = 2
    bench.add("a", python="open('started', 'w')\n" + FOREVER)
    bench.add("b", python=wait)
    bench.add("after-a", python="pass", dependencies=("a",))
    bench.add("after-b", python="pass", dependencies=("b",))
    bench.submit()
    wait_until(bench.path("started").exists)
    bench.executor.cancel([bench.ref("a")])
    assert bench.status("a").state == JobState.CANCELLED
    assert bench.status("b").state == JobState.RUNNING
    bench.path("go").touch()
    statuses = bench.wait()
    assert statuses["b"].state == statuses["after-b"].state == JobState.SUCCEEDED
    assert statuses["after-a"].message == "its dependency 'a' was cancelled"
    bench.executor.cancel(bench.refs)  # what has ended stays as it ended
    assert bench.wait() == statuses


def test_cancel_right_after_submission_is_not_lost(bench: Bench) -> None:
    bench.add(python=FOREVER)
    bench.submit()
    bench.executor.cancel(bench.refs)
    assert bench.status().state == JobState.CANCELLED and bench.processes() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_supervisor_cancels_all(bench: Bench, number: int) -> None:
    bench.add("a", python="open('started', 'w')\n" + FOREVER)
    bench.add("b", python="pass", dependencies=("a",))
    bench.submit()
    wait_until(bench.path("started").exists)
    os.kill(bench.supervisor(), number)
    assert {status.state for status in bench.wait().values()} == {JobState.CANCELLED}
    assert bench.processes() == []


def test_the_rank_alone_gets_sigterm_so_that_its_helpers_live_while_it_saves(bench: Bench) -> None:
    source = (
        "import pathlib, signal, subprocess, sys, time\n"
        "def main():\n"
        "    helper = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "    def save(*_):\n"
        "        time.sleep(0.1)\n"
        "        pathlib.Path('saved').write_text(f'{helper.poll()}\\n')\n"
        "        helper.kill()\n"
        "        sys.exit(0)\n"
        "    signal.signal(signal.SIGTERM, save)\n"
        "    pathlib.Path('ready').touch()\n"
        "    while True: time.sleep(0.01)\n"
    )
    bench.add(yaml=script(bench, source))
    bench.submit()
    wait_until(bench.path("ready").exists)
    bench.executor.cancel(bench.refs)
    assert text_in(bench.path("saved")) == "None"
