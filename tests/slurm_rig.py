"""A real SSH server and Slurm on hosts of their own (scripts/slurm-rig), for the tests that need them."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SLURM_RIG = Path(__file__).parents[1] / "scripts" / "slurm-rig"


@dataclass(frozen=True)
class Rig:
    """The running rig: what `slurm-rig env --json` says of it, and its commands."""

    facts: dict[str, Any]

    @property
    def config(self) -> Path:
        return Path(self.facts["ssh_config"])

    @property
    def home(self) -> Path:
        """The folder here that is /home/alice there."""
        return self.home_of("alice")

    def home_of(self, user: str) -> Path:
        return Path(self.facts["home"]) / user

    def __call__(self, *words: str) -> str:
        done = subprocess.run([SLURM_RIG, *words], text=True, capture_output=True)
        assert done.returncode == 0, f"slurm-rig {words}: {done.stdout}{done.stderr}"
        return done.stdout

    def on(self, host: str, script: str) -> str:
        """What a script prints as root on a host; its exit code does not count."""
        done = subprocess.run([SLURM_RIG, "exec", host, "sh", "-c", script], text=True, capture_output=True)
        return done.stdout

    def on_login(self, script: str) -> str:
        return self.on("login", script)


@pytest.fixture(scope="session")
def rig() -> Iterator[Rig]:
    """The rig, up; taken down after the tests unless it was up before."""
    try:
        was_up = subprocess.run([SLURM_RIG, "status"], capture_output=True).returncode == 0
        done = subprocess.run([SLURM_RIG, "up"], text=True, capture_output=True)
    except OSError as error:
        pytest.skip(f"no SSH and Slurm rig here: {error}")
    if done.returncode == 2:
        pytest.skip(f"no SSH and Slurm rig here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr
    listed = subprocess.run([SLURM_RIG, "env", "--json"], text=True, capture_output=True, check=True)
    yield Rig(json.loads(listed.stdout))
    if not was_up:
        subprocess.run([SLURM_RIG, "down"], check=True, capture_output=True)


@pytest.fixture
def wan(rig: Rig) -> Iterator[Callable[..., str]]:
    """Changes the link to the hosts, such as wan("--cut"); it is mended after the test."""
    yield lambda *words: rig("wan", *words)
    rig("wan", "--mend", "--rtt", "0", "--jitter", "0", "--loss", "0")


#: How much slower than here a machine may be before its tests fail: a longer wait costs only those that do.
PATIENCE = 12


def eventually(condition: Callable[[], Any], seconds: float = 10) -> Any:
    """The condition's value as soon as it is true; fails the test where that takes far more `seconds`."""
    deadline = time.monotonic() + PATIENCE * seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {PATIENCE} x {seconds} s"
        time.sleep(0.02)
    return value
