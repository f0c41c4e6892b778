"""The user's own terminal, lent to a command for a while, and given back as it was, whatever happens."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from types import FrameType

from nemorun.remote.errors import RemoteError

Handler = Callable[[int, FrameType | None], None]


def require() -> int:
    """The terminal's file descriptor. RemoteError where nobody sits at one."""
    try:
        fd = sys.stdin.fileno()
    except (AttributeError, OSError, ValueError):  # closed, or not a file at all
        fd = -1
    if fd < 0 or not os.isatty(fd):
        raise RemoteError(
            "an interactive command needs a terminal, and standard input is none. Start it from a terminal, "
            "without a pipe or a redirection (with ssh: ssh -t)."
        )
    return fd


class _Ended(BaseException):
    """A signal that ends this process has come."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextlib.contextmanager
def lent(fd: int) -> Iterator[None]:
    """Its settings are restored at the end, and when a signal ends this process.

    Ctrl-C and Ctrl-\\ mean the command, which gets them itself. To be used in the main thread.
    """
    before = termios.tcgetattr(fd)

    def end(number: int, _: FrameType | None) -> None:
        raise _Ended(number)  # which ends the command on its way

    def nothing(number: int, _: FrameType | None) -> None:
        pass  # and not SIG_IGN, which a child would inherit

    try:
        with (
            handled(signal.SIGTERM, end),
            handled(signal.SIGHUP, end),
            handled(signal.SIGINT, nothing),
            handled(signal.SIGQUIT, nothing),
        ):
            try:
                yield
            finally:
                with contextlib.suppress(termios.error):  # its window was closed
                    termios.tcsetattr(fd, termios.TCSADRAIN, before)
    except _Ended as ended:
        signal.signal(ended.number, signal.SIG_DFL)
        signal.raise_signal(ended.number)


@contextlib.contextmanager
def handled(number: int, handler: Handler) -> Iterator[None]:
    """Handle a signal for a while."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, signal.SIG_DFL if before is None else before)


def make_raw(fd: int) -> None:
    """Every key goes through as it is, Ctrl-C too. To be used within `lent`."""
    tty.setraw(fd, termios.TCSADRAIN)


def size(fd: int) -> tuple[int, int]:
    """(columns, rows); 80 x 24 where the terminal does not know."""
    columns, rows = os.get_terminal_size(fd)
    return columns or 80, rows or 24
