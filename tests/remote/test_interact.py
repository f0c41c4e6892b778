"""Commands with the user's terminal, by every transport: keys, size, exit code, and what stays behind."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nemorun.remote.connection import Connection
from nemorun.remote.errors import RemoteError
from tests.remote.conftest import QUICK
from tests.slurm_rig import Rig, eventually
from tests.terminals import PROMPT, Terminal

PROGRAM = """\
import os, sys
from pathlib import Path
from nemorun.remote import connect
from nemorun.remote.connection import Timeouts
from nemorun.remote.openssh import OpenSSHConnection
transport, config, command = sys.argv[1:]
host = "" if transport == "local" else "login"
connection = connect(host, transport=transport, config=Path(config), timeouts=Timeouts(dead_after=%r))
try:
    code = connection.interact(command)
except Exception as error:
    code = f"{type(error).__name__}: {error}"
if isinstance(connection, OpenSSHConnection):
    connection.stop()
sys.exit(code)
"""
SHELL = f"PS1='{PROMPT}' exec bash --norc -i"

Start = Callable[..., Terminal]


@pytest.fixture
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts a command on a terminal of its own: start("paramiko", "top")."""
    opened = []

    def make(transport: str, command: str) -> Terminal:
        config = "" if transport == "local" else request.getfixturevalue("rig").config
        argv = [sys.executable, "-c", PROGRAM % QUICK.dead_after, transport, str(config), command]
        opened.append(Terminal(argv))
        return opened[-1]

    yield make
    for terminal in opened:
        terminal.close()


@pytest.fixture(params=["local", "paramiko", "openssh"])
def way(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_a_shell_as_on_ones_own_terminal(start: Start, way: str) -> None:
    shell = start(way, SHELL)
    shell.do('stty size; echo "$TERM"', "30 100\r\nxterm")
    shell.resize(132, 43)
    shell.do('until [ "$(stty size)" = "43 132" ]; do :; done; echo resi""zed', "resized")
    shell.do('sh -c \'echo star""ted; exec sleep 600\'; echo ne""ver', "started")
    shell.type("\x03")
    shell.do('echo ali""ve', "alive")
    shell.do("sh -c 'echo ag\"\"ain; exec sleep 600'", "again")
    shell.type("\x1a")
    shell.expect("Stopped")
    shell.do("kill %1; wait; sh -c 'echo wo\"\"rd; exec cat'", "word")
    shell.type("\x04")  # the end of cat's input, and not the session's
    shell.expect(PROMPT)
    shell.type("exit 7\r")
    assert shell.end() == 7
    assert shell.restored
    assert "never" not in shell.shown


@pytest.mark.parametrize(("command", "code"), [("kill -TERM $$", 143), ("exit 255", 255)])
def test_every_exit_code_comes_back(start: Start, way: str, command: str, code: int) -> None:
    program = start(way, f'echo "it\'s  100%!"\n{command}')
    assert program.end() == code
    assert "it's  100%!" in program.shown and program.restored


def test_the_end_of_the_launcher_restores_the_terminal(start: Start, way: str) -> None:
    shell = start(way, SHELL)
    shell.expect(PROMPT)
    eventually(lambda: not shell.restored)
    os.kill(shell.pid, signal.SIGTERM)
    assert shell.end() == -signal.SIGTERM
    eventually(lambda: shell.restored)


def test_a_killed_session_is_a_lost_connection(start: Start, transport: str) -> None:
    shell = start(transport, SHELL)
    shell.expect(PROMPT)
    shell.type("kill -KILL $(ps -o ppid= -p $PPID)\r")  # the server's process for this connection
    assert shell.end() == 1
    assert "ConnectionLost: login: the connection was lost" in shell.shown
    assert shell.restored


def test_a_silent_host_is_a_lost_connection(start: Start, rig: Rig, wan: Callable[..., str]) -> None:
    shells = [start(transport, SHELL) for transport in ("paramiko", "openssh")]
    for shell in shells:
        shell.expect(PROMPT)
    wan("--cut")
    for shell in shells:
        assert shell.end() == 1
        assert "ConnectionLost: login: the connection was lost" in shell.shown
        assert shell.restored


def test_more_input_than_the_host_takes(start: Start, way: str) -> None:
    """A paste of 3 MB into a command that prints as much before it reads: neither waits for the other."""
    shell = start(
        way, "stty raw -echo; echo ready; head -c 3000000 /dev/zero | tr '\\0' x; head -c 3000000 | wc -c"
    )
    shell.expect("ready")
    shell.type("0123456789" * 300_000)
    shell.expect("3000000")
    assert shell.end() == 0


def test_without_a_terminal_it_is_refused(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/null").open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        with pytest.raises(RemoteError, match=r"needs a terminal.*ssh -t"):
            connection.interact("true")
