"""What users of other launchers suffer from: one test a complaint, through the real command line.

Every test that says "must not have run" looks for a file that the task would have written.
"""

import json
import os
import re
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RECIPES = '''
import enum, os, sys, time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Optional, Union
import nemorun as run


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Inner:
    size: int = 1
    names: list[str] = field(default_factory=list)


def work(text: str = "", n: int = 0, a: list[int] = [1, 2], b: list[int] = [1, 2], run_id: str = "none",
         pair: tuple[int, str] = (0, ""), tags: set[str] = frozenset(), color: Color = Color.RED,
         level: Literal[1, 2] = 1, maybe: Optional[int] = 5, either: Union[int, str] = 0, bare: list = [],
         table: dict = {}, where: Path = Path("."), inner: Inner = Inner(),
         flag: bool = True, lr: float = 0.1):
    Path("ran.txt").open("a").write("ran\\n")
    values = dict(locals())
    values.update(pair=list(pair), tags=sorted(tags), color=color.name, where=str(where),
                  inner=[inner.size, inner.names], types=[type(pair).__name__, type(where).__name__])
    return values


def boom():
    Path("ran.txt").open("a").write("ran\\n")
    raise ValueError("the very reason")


def sleeper():
    Path("pid.txt").write_text(str(os.getpid()))
    print("started", flush=True)
    time.sleep(600)


def interpreter():
    return sys.executable


def environment():
    return {k: v for k, v in os.environ.items() if k.startswith(("MY_", "SLURM_", "SBATCH_", "my_"))}


@run.factory
def job():
    """Works."""
    return run.Partial(work)
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    here = tmp_path / "project"
    here.mkdir()
    (here / "jobs.py").write_text(RECIPES)
    return here


def start(folder: Path, *args: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "nemorun", *args],
        cwd=folder,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def nemorun(folder: Path, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    process = start(folder, *args, **options)
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in err or "the very reason" in err, err
    return subprocess.CompletedProcess(args, process.returncode, out, err)


def latest(folder: Path) -> dict[str, Any]:
    return json.loads(nemorun(folder, "status", "-1", "--json").stdout)


def value(
    folder: Path, *overrides: str, target: str = "jobs.py:work", env: dict[str, str] | None = None
) -> Any:
    """What the task returned, given these overrides."""
    done = nemorun(folder, "run", target, *overrides, env=env)
    assert done.returncode == 0, done.stderr
    results = sorted(Path(os.environ["NEMORUN_HOME"]).rglob("result.json"), key=lambda p: p.stat().st_mtime)
    return json.loads(results[-1].read_text())


def until(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    pytest.fail(f"not within {seconds} s: {what}")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def ran(folder: Path) -> int:
    file = folder / "ran.txt"
    return len(file.read_text().splitlines()) if file.exists() else 0


# Failure must be visible


def test_a_failing_task_exits_1_and_shows_its_reason(folder: Path) -> None:
    done = nemorun(folder, "run", "jobs.py:boom")
    assert done.returncode == 1
    assert "the very reason" in done.stdout + done.stderr


@pytest.mark.parametrize("override", ["n=x", "inner.size=big", "color=GREEN", "level=3", "flag=maybe"])
def test_a_bad_value_exits_2_and_nothing_runs(folder: Path, override: str) -> None:
    done = nemorun(folder, "run", "jobs.py:work", override)
    assert done.returncode == 2
    assert override.split("=")[0] in done.stderr
    assert ran(folder) == 0


def test_a_dependent_never_runs_after_its_dependency_failed(folder: Path) -> None:
    (folder / "graph.py").write_text(
        textwrap.dedent("""
        import sys
        import nemorun as run
        from jobs import boom, work

        if __name__ == "__main__":
            experiment = run.Experiment("graph")
            if sys.argv[1] == "sequential":
                experiment.add(run.Partial(boom), name="first")
                experiment.add(run.Partial(work, text="dependent"), name="second")
            else:
                first = experiment.add(run.Partial(boom), name="first")
                experiment.add(run.Partial(work, text="dependent"), name="second", dependencies=[first])
            experiment.run(sequential=sys.argv[1] == "sequential")
    """)
    )
    for mode in ("sequential", "graph"):
        (folder / "ran.txt").unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, "graph.py", mode], cwd=folder, capture_output=True, text=True, timeout=300
        )
        assert done.returncode != 0
        assert ran(folder) == 1, "only the first task ran"
        states = {task["name"]: (task["state"], task["reason"]) for task in latest(folder)["tasks"]}
        assert states["first"][0] == "FAILED"
        assert states["second"][0] in ("FAILED", "CANCELLED") and "dependency failed" in states["second"][1]


def test_an_unknown_option_is_refused_with_the_nearest(folder: Path) -> None:
    done = nemorun(folder, "run", "jobs.py:work", "--dryrun")
    assert done.returncode == 2
    assert "--dry-run" in done.stderr
    assert ran(folder) == 0


def test_an_unknown_override_is_refused_with_the_nearest(folder: Path) -> None:
    done = nemorun(folder, "run", "jobs.py:work", "inner.siz=3")
    assert done.returncode == 2
    assert "inner.siz" in done.stderr and "'size'" in done.stderr
    assert ran(folder) == 0


def test_an_executor_override_that_does_not_apply_is_refused(folder: Path) -> None:
    done = nemorun(folder, "run", "jobs.py:work", "executor.partition=gpu")
    assert done.returncode == 2
    assert "partition" in done.stderr and "local" in done.stderr
    assert ran(folder) == 0


def test_reasons_differ_and_stand_in_plain_words(folder: Path) -> None:
    reasons = {}
    for name, args in {
        "exit": ["run", "--", sys.executable, "-c", "raise SystemExit(3)"],
        "timeout": ["run", "jobs.py:sleeper", "executor.time=0:01"],
        "signal": ["run", "--", sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"],
    }.items():
        done = nemorun(folder, *args)
        assert done.returncode == 1, done.stderr
        task = latest(folder)["tasks"][0]
        reasons[name] = task["reason"]
        assert task["message"]
    assert reasons["timeout"] == "time limit reached"
    assert reasons["exit"] == "non-zero exit code"
    assert reasons["signal"] in ("ended by a signal", "out of memory")


def test_polling_that_fails_makes_a_run_unknown_and_never_cancels_it(folder: Path) -> None:
    done = nemorun(folder, "run", "jobs.py:sleeper", "--detach")
    assert done.returncode == 0, done.stderr
    pid = int(
        until(lambda: (folder / "pid.txt").exists() and (folder / "pid.txt").read_text(), "the task starts")
    )
    journal = next(Path(os.environ["NEMORUN_HOME"]).rglob("journal.jsonl"))
    hidden = journal.with_name("hidden")
    journal.rename(hidden)
    journal.mkdir()  # unreadable even for root
    try:
        assert latest(folder)["tasks"][0]["state"] == "UNKNOWN"
        assert alive(pid)
    finally:
        journal.rmdir()
        hidden.rename(journal)
    assert latest(folder)["tasks"][0]["state"] == "RUNNING"
    assert nemorun(folder, "cancel", "-1", "--yes").returncode == 0
    until(lambda: not alive(pid), "the task is gone")


# Overrides


def test_left_to_right(folder: Path) -> None:
    assert value(folder, "n=1", "n+=1", "n=5")["n"] == 5
    assert value(folder, "n+=1", "n+=1")["n"] == 2
    seen = value(folder, "a=[1,2]", "b=[1,2]", "b+=[3]")
    assert (seen["a"], seen["b"]) == ([1, 2], [1, 2, 3])
    assert value(folder, "b+=[3]")["a"] == [1, 2]


@pytest.mark.parametrize(
    "text",
    [
        "${HOME}",
        "???",
        "it's",
        "two  words",
        '"',
        "ünïcødé ✓",
        "a=b",
        "@home",
        "[1",
        "$(id)",
        "`id`",
        "null",
        "1e3",
        "\\n",
        "-x",
    ],
)
def test_text_passes_through_untouched(folder: Path, text: str) -> None:
    assert value(folder, f"text={text}")["text"] == text


def test_a_parameter_may_be_called_run_id(folder: Path) -> None:
    assert value(folder, "run_id=7")["run_id"] == "7"


def test_every_type_can_be_set(folder: Path) -> None:
    seen = value(
        folder,
        "pair=(3,'x')",
        "tags={'p','q'}",
        "color=BLUE",
        "level=2",
        "maybe=None",
        "either=word",
        "bare=[1,'a']",
        "table={'k': 1}",
        "table.z=2",
        "where=/tmp/x y",
        "inner.names=['q']",
        "inner.size=4",
        "flag=False",
        "lr=3e-4",
    )
    assert seen["pair"] == [3, "x"] and seen["tags"] == ["p", "q"] and seen["color"] == "BLUE"
    assert (
        seen["level"] == 2 and seen["maybe"] is None and seen["either"] == "word" and seen["bare"] == [1, "a"]
    )
    assert seen["table"] == {"k": 1, "z": 2} and seen["where"] == "/tmp/x y" and seen["inner"] == [4, ["q"]]
    assert seen["flag"] is False and seen["lr"] == 3e-4
    assert seen["types"][0] == "tuple" and seen["types"][1].endswith("Path")


def test_falsy_values_survive(folder: Path) -> None:
    seen = value(folder, "n=0", "text=", "a=[]", "flag=false", "maybe=0")
    assert (seen["n"], seen["text"], seen["a"], seen["flag"], seen["maybe"]) == (0, "", [], False, 0)


# Scripts: what the local executor shares with the others


def test_environment_values_survive_and_slurm_does_not_leak(folder: Path) -> None:
    values = {
        "MY_COMMAS": "1,2",
        "my_case": "x y",
        "MY_QUOTES": 'it\'s "q"',
        "MY_LINES": "a\nb",
        "MY_DOLLAR": "$HOME `id`",
    }
    args = [part for item in values.items() for part in ("--env", "=".join(item))]
    surrounding = {**os.environ, "SLURM_CPU_BIND": "quiet", "SLURM_JOB_ID": "7", "SBATCH_PARTITION": "p"}
    assert value(folder, *args, target="jobs.py:environment", env=surrounding) == values


def test_secrets_stand_nowhere(folder: Path) -> None:
    secret = "hunter2-hunter2-hunter2"
    env = {**os.environ, "MY_TOKEN": secret}
    (folder / "look.py").write_text(
        textwrap.dedent("""
            import os
            from contextlib import suppress
            from pathlib import Path

            secret = os.environ["MY_TOKEN"].encode()
            assert secret.startswith(b"hunter2")
            for line in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):  # it has ended
                    assert secret not in line.read_bytes(), "in a process list"
        """)
    )
    done = nemorun(folder, "run", "--secret", "MY_TOKEN", "--", sys.executable, "look.py", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    dry = nemorun(folder, "run", "--secret", "MY_TOKEN", "--dry-run", "--", "true", env=env)
    assert secret not in dry.stdout + dry.stderr and "MY_TOKEN" in dry.stdout
    for file in Path(os.environ["NEMORUN_HOME"]).rglob("*"):
        assert not file.is_file() or secret.encode() not in file.read_bytes(), file
    missing = nemorun(folder, "run", "--secret", "MY_OTHER", "--", "true")
    assert missing.returncode == 2 and "MY_OTHER" in missing.stderr


@pytest.mark.parametrize(
    "override",
    ["executor.nodes=-3", "executor.nodes=x", "executor.time=banana", "executor.ntasks_per_node=0"],
)
def test_bad_executor_values_are_refused_before_anything_is_submitted(folder: Path, override: str) -> None:
    done = nemorun(folder, "run", "jobs.py:work", override)
    assert done.returncode == 2
    assert override.partition("=")[0].removeprefix("executor.") in done.stderr
    assert ran(folder) == 0
    assert json.loads(nemorun(folder, "list", "--json").stdout) == []


# Code that runs is the code that was submitted


def git(folder: Path, *args: str) -> None:
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", *args],
        cwd=folder,
        check=True,
        capture_output=True,
    )


def test_code_is_frozen_with_uncommitted_changes_and_a_warning(folder: Path) -> None:
    (folder / "lib.py").write_text("WORD = 'committed'\n")
    (folder / ".gitignore").write_text("data/\n*.txt\n")
    (folder / "slow.py").write_text(
        textwrap.dedent("""
        import time
        from pathlib import Path

        def late():
            Path("up.txt").write_text("")
            while not Path("go.txt").exists():
                time.sleep(0.02)
            import lib
            return lib.WORD
    """)
    )
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "x")
    (folder / "lib.py").write_text("WORD = 'uncommitted'\n")
    (folder / "untracked.py").write_text("")
    done = nemorun(folder, "run", "slow.py:late", "--detach")
    assert done.returncode == 0, done.stderr
    assert "lib.py" in done.stderr and "untracked.py" in done.stderr
    until(lambda: (folder / "up.txt").exists(), "the task runs")
    (folder / "lib.py").write_text("WORD = 'edited after submission'\n")
    (folder / "go.txt").write_text("")
    until(lambda: latest(folder)["state"] == "SUCCEEDED", "the task ends")
    assert (
        json.loads(next(Path(os.environ["NEMORUN_HOME"]).rglob("result.json")).read_text()) == "uncommitted"
    )


def test_silly_archives_are_refused_and_the_files_named(folder: Path) -> None:
    git(folder, "init", "-q")
    (folder / "weights.bin").write_bytes(os.urandom(3_000_000))
    (folder / "nemorun.yaml").write_text("code:\n  max_size: 1MB\n")
    done = nemorun(folder, "run", "jobs.py:work")
    assert done.returncode == 2
    assert "weights.bin" in done.stderr and ".nemorunignore" in done.stderr
    assert ran(folder) == 0
    (folder / ".nemorunignore").write_text("*.bin\n")
    assert nemorun(folder, "run", "jobs.py:work").returncode == 0


def test_a_script_without_a_main_guard_submits_once(folder: Path) -> None:
    (folder / "plain.py").write_text(
        textwrap.dedent("""
        from pathlib import Path
        import nemorun as run

        def task(word):
            Path("ran.txt").open("a").write(word + "\\n")

        result = run.run(run.Partial(task, word="once"), executor=run.LocalExecutor())
        Path("after.txt").open("a").write("after\\n")
        print(result.state.value)
    """)
    )
    done = subprocess.run(
        [sys.executable, "plain.py"], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert ran(folder) == 1
    assert (folder / "after.txt").read_text() == "after\n"
    assert len(json.loads(nemorun(folder, "list", "--json").stdout)) == 1


def test_the_interpreter_is_the_launchers_own(folder: Path) -> None:
    fake = folder / "bin" / "python"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\nexit 99\n")
    fake.chmod(0o755)
    env = {**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}"}
    assert value(folder, target="jobs.py:interpreter", env=env) == sys.executable


# Reconnecting, on this machine


def test_every_command_works_after_the_launcher_died(folder: Path) -> None:
    launcher = start(folder, "run", "jobs.py:sleeper")
    pid = int(
        until(lambda: (folder / "pid.txt").exists() and (folder / "pid.txt").read_text(), "the task starts")
    )
    launcher.kill()
    launcher.communicate()
    assert latest(folder)["state"] == "RUNNING"
    assert "started" in nemorun(folder, "logs", "-1").stdout
    assert len(json.loads(nemorun(folder, "list", "--json").stdout)) == 1
    assert nemorun(folder, "cancel", "-1", "--yes").returncode == 0
    until(lambda: not alive(pid), "the task is gone")
    assert latest(folder)["state"] == "CANCELLED"


def test_logs_are_followed_from_where_they_stopped(folder: Path) -> None:
    (folder / "talk.py").write_text(
        textwrap.dedent("""
        import time
        from pathlib import Path

        def talk():
            print("line one", flush=True)
            while not Path("go.txt").exists():
                time.sleep(0.02)
            print("line two", flush=True)
    """)
    )
    assert nemorun(folder, "run", "talk.py:talk", "--detach").returncode == 0
    follower = start(folder, "logs", "-1", "-f")
    assert follower.stdout is not None
    assert "line one" in follower.stdout.readline()
    (folder / "go.txt").write_text("")
    out, err = follower.communicate(timeout=300)
    assert follower.returncode == 0, err
    assert out.count("line two") == 1 and "line one" not in out


def test_an_interrupt_without_a_terminal_cancels_and_leaves_no_orphan(folder: Path) -> None:
    launcher = start(folder, "run", "jobs.py:sleeper", start_new_session=True)
    pid = int(
        until(lambda: (folder / "pid.txt").exists() and (folder / "pid.txt").read_text(), "the task starts")
    )
    launcher.send_signal(signal.SIGINT)
    launcher.communicate(timeout=300)
    assert launcher.returncode == 130
    until(lambda: not alive(pid), "the task is gone")
    assert latest(folder)["state"] == "CANCELLED"


@pytest.mark.parametrize(("answer", "state"), [("n", "RUNNING"), ("y", "CANCELLED")])
def test_an_interrupt_on_a_terminal_asks_once(folder: Path, answer: str, state: str) -> None:
    import pty

    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.execv(sys.executable, [sys.executable, "-m", "nemorun", "run", "jobs.py:sleeper"])
    seen = b""

    def read_until(pattern: bytes) -> None:
        nonlocal seen
        while not re.search(pattern, seen):
            assert select.select([terminal], [], [], 60)[0], f"no {pattern!r} in {seen!r}"
            seen += os.read(terminal, 4096)

    read_until(rb"started")
    pid = int((folder / "pid.txt").read_text())
    os.write(terminal, b"\x03")
    read_until(rb"\[y/N\]")
    os.write(terminal, answer.encode() + b"\n")
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    assert latest(folder)["state"] == state
    if state == "RUNNING":
        assert alive(pid)
        assert nemorun(folder, "cancel", "-1", "--yes").returncode == 0
    until(lambda: not alive(pid), "the task is gone")
