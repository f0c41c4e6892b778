"""A workspace to stand in, and the command line: as a process where that matters, else in this one."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

JOBS = '''\
"""Tasks and recipes for the tests of the command line."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import nemorun as run


@dataclass
class Inner:
    """How it is done."""

    size: int = 1
    """How large [it] is."""
    names: list[str] = field(default_factory=list)


def work(text: str = "", n: int = 0, inner: Inner = Inner(), flag: bool = True) -> dict:
    """Write down what was given.

    Args:
        text: words to keep
    """
    with Path("ran.txt").open("a") as file:
        file.write(f"{text} {n} {inner.size}\\n")
    print(f"worked with n={n}")
    return {"text": text, "n": n, "size": inner.size}


def boom() -> None:
    raise ValueError("the very reason")


def environment() -> dict:
    return {name: value for name, value in os.environ.items() if name.startswith("MY_")}


@run.cli.factory
def job(size: int = 1):
    """Do the work [as it stands]."""
    return run.Partial(work, inner=run.Config(Inner, size=size))


class Polite:
    """A plugin that changes the task."""

    def __init__(self, word: str = "please"):
        self.word = word

    def setup(self, task, executor):
        task.text = task.text + self.word
'''


@dataclass
class Done:
    code: int
    out: str
    err: str


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `jobs.py` and an empty nemorun.yaml, made the current one."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "jobs.py").write_text(JOBS)
    (folder / "nemorun.yaml").write_text("")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run one command line in this process."""
    from nemorun.cli.main import invoke

    def call(*argv: str) -> Done:
        capfd.readouterr()
        try:
            code = invoke(argv)
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capfd.readouterr()
        return Done(code, captured.out, captured.err)

    return call


@pytest.fixture
def process() -> Callable[..., Done]:
    """Run one command line as a process of its own, without a terminal."""

    def call(*argv: str, timeout: float = 60, **options: Any) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "nemorun", *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            **options,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return call


def terminal(argv: list[str], answer: str = "", env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run a program on a terminal of its own and type `answer` there: exit code, and what was shown."""
    child, master = pty.fork()
    if child == 0:
        os.execve(argv[0], argv, {**os.environ, **(env or {})})
    os.write(master, answer.encode())
    seen = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # Linux says so that the other end was closed
            break
        if not piece:
            break
        seen += piece
    _, status = os.waitpid(child, 0)
    os.close(master)
    return os.waitstatus_to_exitcode(status), seen.decode().replace("\r\n", "\n")
