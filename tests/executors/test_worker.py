"""The worker by itself: what it calls, keeps and says."""

from __future__ import annotations

import json
import os
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
