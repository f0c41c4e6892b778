"""A second factor asked for at a terminal, as a user meets it: the answer is not shown."""

from __future__ import annotations

import os
import pty
import sys

from tests.slurm_rig import Rig

PROGRAM = """\
import sys
from pathlib import Path
from nemorun.remote import connect
from nemorun.remote.openssh import OpenSSHConnection
connection = connect("login-2fa", transport=sys.argv[1], config=Path(sys.argv[2]))
print("on", connection.run("hostname").stdout)
if isinstance(connection, OpenSSHConnection):
    connection.stop()
"""


def test_the_terminal_asks(rig: Rig, transport: str) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", PROGRAM, transport, str(rig.config)])
    shown = b""
    answered = False
    while chunk := _read(terminal):
        shown += chunk
        if b"Password:" in shown and not answered:
            os.write(terminal, str(rig.facts["password"]).encode() + b"\n")
            answered = True
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert answered
    assert (status, b"on login" in shown) == (0, True), shown.decode()
    assert str(rig.facts["password"]).encode() not in shown


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1000)
    except OSError:  # Linux's word for the end
        return b""
