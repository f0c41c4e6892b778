"""A real sshd on hosts of their own (scripts/slurm-rig), and connections to it by every transport."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nemorun.remote import connect
from nemorun.remote.connection import Connection, Timeouts
from nemorun.remote.openssh import OpenSSHConnection

SLURM_RIG = Path(__file__).parents[2] / "scripts" / "slurm-rig"
QUICK = Timeouts(connect=5, auth=20, dead_after=4)


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
        return Path(self.facts["home"]) / "alice"

    def __call__(self, *words: str) -> str:
        done = subprocess.run([SLURM_RIG, *words], text=True, capture_output=True)
        assert done.returncode == 0, f"slurm-rig {words}: {done.stdout}{done.stderr}"
        return done.stdout

    def on_login(self, script: str) -> str:
        """Run a script as root on the login host; its exit code does not count."""
        done = subprocess.run(
            [SLURM_RIG, "exec", "login", "sh", "-c", script], text=True, capture_output=True
        )
        return done.stdout


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


@pytest.fixture(scope="session")
def sockets() -> Iterator[Path]:
    """Where masters of the tests have their sockets: a short path."""
    folder = tempfile.mkdtemp(prefix="nr-")
    yield Path(folder)
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def own_sockets(sockets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(sockets))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


def end(connection: Connection) -> None:
    """Close it, and end its master."""
    connection.close()
    if isinstance(connection, OpenSSHConnection):
        connection.stop()


@pytest.fixture
def dial(rig: Rig) -> Iterator[Callable[..., Connection]]:
    """Makes connections to hosts of the rig, as `connect` does; they are ended after the test."""
    made = []

    def make(host: str = "login", **options: Any) -> Connection:
        made.append(connect(host, **{"config": rig.config, "timeouts": QUICK, **options}))
        return made[-1]

    yield make
    for connection in made:
        end(connection)


@pytest.fixture(scope="session")
def _connections(sockets: Path) -> Iterator[dict[str, Connection]]:
    made: dict[str, Connection] = {}
    yield made
    for connection in made.values():
        end(connection)


@pytest.fixture(
    params=["local", "paramiko login", "openssh login", "paramiko login-jump", "openssh login-jump"]
)
def connection(
    request: pytest.FixtureRequest, _connections: dict[str, Connection], own_sockets: None
) -> Connection:
    """A connection by each transport, direct and through the bastion; reused by all tests."""
    if request.param not in _connections:
        transport, _, host = request.param.partition(" ")
        if transport == "local":
            _connections[request.param] = connect(transport=transport)
        else:
            rig: Rig = request.getfixturevalue("rig")
            _connections[request.param] = connect(host, transport=transport, config=rig.config)
    return _connections[request.param]


@pytest.fixture(params=["paramiko", "openssh"])
def transport(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def folder(connection: Connection) -> Iterator[str]:
    """A folder on the other machine."""
    path = connection.run("mktemp -d", check=True).stdout.strip()
    yield path
    connection.run(f"chmod -R u+rwx {path}; rm -rf {path}")


def eventually(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)
