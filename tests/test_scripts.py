"""What stops the scripts of the README is said in a line: no Python, an old one, no venv, no network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = ("bash", "cat", "cksum", "dirname", "env", "grep", "tail")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose `.venv` may be made and broken."""
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in ("scripts", "nemorun", "executors", "recipes"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.lock", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def quickstart(checkout: Path, **env: str) -> str:
    """What it said on stderr; it must have ended with 1."""
    script = checkout / "scripts" / "quickstart"
    done = subprocess.run([script], env={**os.environ, **env}, text=True, capture_output=True)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stderr


def path_with(folder: Path, **programs: str) -> str:
    """A PATH of the few tools that the scripts need, and of these shell scripts."""
    folder.mkdir()
    for name in TOOLS:
        (folder / name).symlink_to(shutil.which(name) or name)
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return str(folder)


def test_no_python(checkout: Path, tmp_path: Path) -> None:
    said = quickstart(checkout, PATH=path_with(tmp_path / "bin"))
    assert said == "quickstart: no Python 3.10 to 3.13 on PATH. Install one, or set PYTHON to its path.\n"


def test_an_old_python_is_passed_over(checkout: Path, tmp_path: Path) -> None:
    assert "no Python 3.10 to 3.13" in quickstart(
        checkout, PATH=path_with(tmp_path / "bin", python3="echo 3.9.2")
    )


def test_a_chosen_python_that_is_too_old(checkout: Path, tmp_path: Path) -> None:
    path_with(tmp_path / "my python", old="echo 3.9.2")
    said = quickstart(checkout, PYTHON=str(tmp_path / "my python" / "old"))
    assert "my python/old is Python 3.9.2, and cannot be used" in said


def test_a_python_without_venv(checkout: Path, tmp_path: Path) -> None:
    python = 'case "$*" in *ensurepip*) exit 1;; *) echo 3.12.1;; esac'
    said = quickstart(checkout, PATH=path_with(tmp_path / "bin", python3=python))
    assert "python3 (3.12.1) has no venv module" in said


@pytest.mark.slow
def test_no_network(checkout: Path) -> None:
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(checkout), "PIP_CONFIG_FILE": os.devnull}
    for _ in range(2):  # what failed counts as not installed the second time, too
        said = quickstart(checkout, PYTHON=sys.executable, **offline)
        assert "No matching distribution found" in said
        assert "pip could not install the packages" in said


def test_every_script_is_clean() -> None:
    files = [path for path in (ROOT / "scripts").rglob("*") if path.is_file()] + [ROOT / ".ci" / "run"]
    scripts = [path for path in files if path.suffix != ".pyc" and _first_line(path).endswith(b"sh")]
    assert len(scripts) > 4
    checker = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([checker, "-x", *scripts], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


def _first_line(path: Path) -> bytes:
    return path.read_bytes().partition(b"\n")[0]
