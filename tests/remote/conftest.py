"""A real sshd on hosts of their own (scripts/slurm-rig), and connections to it by every transport."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nemorun.remote import connect
from nemorun.remote.connection import Connection, Timeouts
from nemorun.remote.openssh import OpenSSHConnection
from tests.slurm_rig import Rig

QUICK = Timeouts(connect=5, auth=20, dead_after=4)


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
