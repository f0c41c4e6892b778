"""A terminal with a program on it, driven as a person does: type, look, change the window's size."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from collections.abc import Mapping
from typing import Any

PATIENCE = 60.0
#: What shells of the tests show when they are ready for a line.
PROMPT = "ready> "


class Terminal:
    """The program runs in a session of its own, whose terminal this is."""

    def __init__(self, argv: list[str], env: Mapping[str, str] | None = None) -> None:
        # Our own hold on its end, too: the settings can be looked at when the program has ended.
        self._fd, self._held = pty.openpty()
        os.set_blocking(self._fd, False)
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            fcntl.ioctl(self._held, termios.TIOCSCTTY, 0)
            for fd in range(3):
                os.dup2(self._held, fd)
            os.closerange(3, 256)
            for number in (
                signal.SIGINT,
                signal.SIGQUIT,
                signal.SIGTSTP,
            ):  # as whatever runs the tests has them
                signal.signal(number, signal.SIG_DFL)
            os.execve(argv[0], argv, {**os.environ, "TERM": "xterm", **(env or {})})
        self._begin = self.settings()
        self.shown = ""
        self._seen = 0
        self.code: int | None = None

    def settings(self) -> list[Any]:
        return termios.tcgetattr(self._fd)

    @property
    def raw(self) -> bool:
        """Whether keys go through one by one, Ctrl-C too."""
        return not self.settings()[3] & (termios.ICANON | termios.ISIG)

    @property
    def restored(self) -> bool:
        return self.settings() == self._begin

    def type(self, keys: str) -> None:
        """All of them, at the pace at which the program reads them."""
        data = keys.encode()
        deadline = time.monotonic() + PATIENCE
        while data:
            assert time.monotonic() < deadline, f"it reads no more keys:\n{self.shown[-2000:]}"
            ready, writable, _ = select.select([self._fd], [self._fd], [], 0.05)
            if ready:  # a program that is not read from reads no more, either
                self._look()
            if writable:
                data = data[os.write(self._fd, data) :]

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def expect(self, *texts: str) -> str:
        """Wait until one of the texts is shown, after what was waited for before; which one."""
        deadline = time.monotonic() + PATIENCE
        while True:
            found = [(at, text) for text in texts if (at := self.shown.find(text, self._seen)) >= 0]
            if found:
                at, text = min(found)
                self._seen = at + len(text)
                return text
            assert self.code is None, f"ended with {self.code} before {texts}:\n{self.shown[-2000:]}"
            assert time.monotonic() < deadline, f"no {texts} within {PATIENCE} s:\n{self.shown[-2000:]}"
            self._look()

    def do(self, line: str, shows: str) -> None:
        """Type a line once a shell is ready for it, and wait for what it prints.

        The line itself is shown, too: write `echo do""ne` to wait for "done".
        """
        self.expect(PROMPT)
        self.type(line + "\r")
        self.expect(shows)

    def end(self) -> int:
        """Wait for the program's end; its exit code."""
        deadline = time.monotonic() + PATIENCE
        while self.code is None:
            assert time.monotonic() < deadline, f"it does not end:\n{self.shown}"
            self._look()
        return self.code

    def _look(self) -> None:
        if self.code is None and (status := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.code = os.waitstatus_to_exitcode(status[1])
        while select.select([self._fd], [], [], 0 if self.code is not None else 0.05)[0]:
            self.shown += os.read(self._fd, 65536).decode(errors="replace")
            if self.code is None:
                break

    def close(self) -> None:
        """Close the window; a program that goes on all the same is ended."""
        os.close(self._held)
        os.close(self._fd)
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
