"""Carries keys, output and the window's size between the user's terminal and a session of paramiko's."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING

from nemorun.remote import terminal
from nemorun.remote.pipes import CHUNK

if TYPE_CHECKING:
    import paramiko

#: How long to wait, in seconds, before asking again whether the host takes more input.
_FULL = 0.05


def give_terminal(channel: paramiko.Channel, tty: int) -> None:
    """Returns when the session has ended, or its connection. To be used within `terminal.lent`."""
    resized, wake = os.pipe()
    os.set_blocking(wake, False)

    def on_resize(number: int, _: FrameType | None) -> None:
        # Only noted here: the session may be in the middle of sending something.
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes us anyway
            os.write(wake, b"\0")

    out = sys.stdout.fileno()
    sys.stdout.flush()
    unsent = b""
    try:
        with terminal.handled(signal.SIGWINCH, on_resize), contextlib.suppress(OSError, EOFError):
            terminal.make_raw(tty)
            while True:
                # Nothing more is read from the keyboard while the host takes nothing, and no send ever waits:
                # what the command prints has to be read meanwhile.
                sources = [channel.fileno(), resized, *([] if unsent else [tty])]
                ready, _, _ = select.select(sources, [], [], _FULL if unsent else None)
                # asked before the data: what comes later is not missed
                ended = channel.eof_received or channel.closed
                if channel.recv_ready():
                    _write(out, channel.recv(CHUNK))
                elif ended:
                    return
                if resized in ready:
                    os.read(resized, CHUNK)
                    _resize(channel, tty)
                if tty in ready and not (unsent := os.read(tty, CHUNK)):
                    return  # the terminal is gone
                if unsent and channel.send_ready():
                    unsent = unsent[channel.send(unsent) :]
    finally:
        os.close(resized)
        os.close(wake)


def _resize(channel: paramiko.Channel, tty: int) -> None:
    import paramiko

    with contextlib.suppress(paramiko.SSHException):  # it has just ended
        channel.resize_pty(*terminal.size(tty))


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
