"""The worker by itself: what it calls, keeps and says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest


def worker(
    folder: Path, source: str = "", yaml: str = "", words: tuple[str, ...] = (), **env: str
) -> subprocess.CompletedProcess[str]:
    """Run it on a task.yaml that calls `main` of a script with this source, or on other words."""
    (folder / "logs" / "attempt-1").mkdir(parents=True, exist_ok=True)
    script, task = folder / "script.py", folder / "task.yaml"
    script.write_text(source)
    task.write_text(yaml or f"_target_: script:{script}:main\n_partial_: true\n")
    return subprocess.run(
        [sys.executable, "-m", "nemorun.worker", *(words or (str(task),))],
        env={**os.environ, "NEMORUN_RUN_DIR": str(folder), **env},
        cwd=folder, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_it_calls_the_target_with_its_arguments(tmp_path: Path) -> None:
    done = worker(tmp_path, yaml="_target_: builtins.sorted\n_partial_: true\n_args_: []\n")
    assert done.returncode != 0  # an argument that sorted() needs is missing
    source = "def main(a=0, b=''): return {'a': a, 'b': b}\n"
    yaml = f"_target_: script:{tmp_path / 'script.py'}:main\n_partial_: true\na: 2\nb: 'x y'\n"
    assert worker(tmp_path, source, yaml).returncode == 0
    assert json.loads((tmp_path / "result.json").read_text()) == {"a": 2, "b": "x y"}


def test_only_rank_0_keeps_a_result_and_only_plain_data(tmp_path: Path) -> None:
    source = "def main(): return 1\n"
    assert worker(tmp_path, source, RANK="1").returncode == 0
    assert worker(tmp_path, "def main(): return object()\n").returncode == 0
    assert not (tmp_path / "result.json").exists()
    assert worker(tmp_path, source, RANK="0").returncode == 0
    assert (tmp_path / "result.json").read_text() == "1"
    assert (tmp_path / "result.json").stat().st_mode & 0o077 == 0


def test_exit_codes_pass_through(tmp_path: Path) -> None:
    assert worker(tmp_path, "import sys\ndef main(): sys.exit(75)\n").returncode == 75
    assert worker(tmp_path, "def main(): raise SystemExit\n").returncode == 0
    assert worker(tmp_path, "def main(): 1 / 0\n").returncode == 1


def test_a_traceback_shows_the_users_frames_only(tmp_path: Path) -> None:
    done = worker(tmp_path, "def main(): return inner()\ndef inner(): return 1 / 0\n")
    files = [line for line in done.stderr.splitlines() if line.lstrip().startswith("File ")]
    assert len(files) == 2 and all("script.py" in line for line in files)
    failure = json.loads((tmp_path / "logs" / "attempt-1" / "rank-0.failure").read_text())
    assert failure["type"] == "ZeroDivisionError"
    assert failure["error"] == "ZeroDivisionError: division by zero"


def test_an_error_of_ours_is_a_sentence(tmp_path: Path) -> None:
    source = "from nemorun.errors import ConfigError\ndef main(): raise ConfigError('the lr is wrong')\n"
    done = worker(tmp_path, source)
    assert (done.returncode, done.stderr) == (1, "nemorun: the lr is wrong\n")
    failure = json.loads((tmp_path / "logs" / "attempt-1" / "rank-0.failure").read_text())
    assert failure["error"] == "ConfigError: the lr is wrong"


def test_a_target_that_does_not_exist_is_told_without_our_frames(tmp_path: Path) -> None:
    done = worker(tmp_path, yaml="_target_: os.no_such_thing\n_partial_: true\n")
    assert done.returncode == 1 and "no_such_thing" in done.stderr
    assert "worker.py" not in done.stderr


def test_it_seeds_what_the_task_has_imported(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    source = "import random, numpy\ndef main(): return [random.random(), float(numpy.random.rand())]\n"
    values = []
    for seed in ("7", "7", "8"):
        assert worker(tmp_path, source, NEMORUN_SEED=seed).returncode == 0
        values.append((tmp_path / "result.json").read_text())
    assert values[0] == values[1] != values[2]


def test_a_command_ends_as_its_program_ends(tmp_path: Path) -> None:
    assert worker(tmp_path, words=("--command", "--", "sh", "-c", "exit 7")).returncode == 7
    assert worker(tmp_path, words=("--command", "--", "sh", "-c", "kill -SEGV $$")).returncode == -11
    odd = 'it\'s $HOME "x"\n*'
    assert worker(tmp_path, words=("--command", "--", "printf", "%s", odd)).stdout == odd


def test_misuse(tmp_path: Path) -> None:
    for words in (("--command",), ("a", "b"), ("--command", "--")):
        done = worker(tmp_path, words=words)
        assert done.returncode == 1 and done.stderr.startswith("usage: ")


def test_it_imports_little(tmp_path: Path) -> None:
    """Start-up is paid by every rank of every task."""
    source = "import sys\ndef main(): return sorted(sys.modules)\n"
    assert worker(tmp_path, source).returncode == 0
    modules = set(json.loads((tmp_path / "result.json").read_text()))
    assert not modules & {"pydantic", "typer", "rich", "torch", "numpy", "asyncio", "importlib.metadata"}


def start(folder: Path, *words: str, **env: str) -> subprocess.Popen[str]:
    """The worker, started, so that it can be told to stop."""
    (folder / "logs" / "attempt-1").mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "nemorun.worker", *words],
        env={**os.environ, "NEMORUN_RUN_DIR": str(folder), **env},
        cwd=folder, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_resumable_task_that_does_not_listen_yet_asks_to_be_resumed(
    tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "script.py").write_text("print('here', flush=True)\nwhile True: pass\n")
    (tmp_path / "task.yaml").write_text(f"_target_: script:{tmp_path}/script.py:main\n_partial_: true\n")
    for resumable, code in (("1", 75), ("", -number)):
        with start(tmp_path, "task.yaml", NEMORUN_RESUMABLE=resumable) as process:
            assert process.stdout is not None and process.stdout.readline() == "here\n"
            process.send_signal(number)
        assert process.returncode == code
        marker = tmp_path / "logs" / "attempt-1" / "resume"
        assert marker.exists() == bool(resumable)
        marker.unlink(missing_ok=True)


def test_a_task_that_ends_with_75_leaves_a_marker(tmp_path: Path) -> None:
    """Of several ranks, the others are killed when one ends: its exit code may not get through."""
    marker = tmp_path / "logs" / "attempt-1" / "resume"
    assert worker(tmp_path, "import sys\ndef main(): sys.exit(74)\n").returncode == 74
    assert not marker.exists()
    assert worker(tmp_path, "import sys\ndef main(): sys.exit(75)\n").returncode == 75
    assert marker.exists()
    marker.unlink()
    assert worker(tmp_path, words=("--command", "--", "sh", "-c", "exit 75")).returncode == 75
    assert marker.exists()


@pytest.mark.parametrize(
    ("script", "code"),
    [("trap 'exit 75' USR2; echo here; while :; do sleep 0.05; done", 75), ("echo here; exec sleep 60", 75)],
    ids=["listens", "does not listen"],
)
def test_a_resumable_command_is_told_to_stop(tmp_path: Path, script: str, code: int) -> None:
    with start(tmp_path, "--command", "--", "sh", "-c", script, NEMORUN_RESUMABLE="1") as process:
        assert process.stdout is not None and process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGUSR2)
    assert process.returncode == code
    assert (tmp_path / "logs" / "attempt-1" / "resume").exists()


def test_it_writes_its_own_log_where_nothing_else_does(tmp_path: Path) -> None:
    source = (
        "import os, sys\n"
        "def main():\n"
        "    print('out', 'NEMORUN_RANK_LOGS' in os.environ)\n"
        "    os.system('echo child >&2')\n"
        "    1 / 0\n"
    )
    logs = tmp_path / "logs" / "attempt-1"
    env = {"NEMORUN_RANK_LOGS": str(logs), "RANK": "3", "PYTHONUNBUFFERED": "1"}
    for _ in range(2):  # a second attempt at it goes on in the same file
        done = worker(tmp_path, source, **env)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    text = (logs / "rank-3.log").read_text()
    assert text.count("out False\nchild\n") == text.count("ZeroDivisionError") == 2
    done = worker(tmp_path, source, NEMORUN_RANK_LOGS=str(tmp_path / "none"))
    assert "none/rank-0.log cannot be written: No such file" in done.stderr and "out" in done.stdout


def test_it_runs_as_a_folder(tmp_path: Path) -> None:
    """As on a cluster: `python3 nemorun task.yaml`, where the folder holds the packages and a __main__.py."""
    folder = tmp_path / "nemorun"
    folder.mkdir()
    (folder / "__main__.py").write_text("from nemorun.worker import main\n\nmain()\n")
    (tmp_path / "script.py").write_text("def main(): 1 / 0\n")
    (tmp_path / "task.yaml").write_text(f"_target_: script:{tmp_path}/script.py:main\n_partial_: true\n")
    done = subprocess.run(
        [sys.executable, "nemorun", "task.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    files = [line for line in done.stderr.splitlines() if line.lstrip().startswith("File ")]
    assert done.returncode == 1 and len(files) == 1 and "script.py" in files[0]
