"""The three streams of one command, the only thing in which the transports differ while a command runs."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
from typing import Protocol

CHUNK = 65536


class Pipes(Protocol):
    """What a transport gives for a command that it has sent off."""

    def write(self, data: bytes) -> None:
        """Give all of `data` to the input, waiting while it is full; OSError where it is closed."""

    def end_input(self) -> None:
        """The command sees the end of its input."""

    def read(self, timeout: float | None) -> tuple[bytes, bytes] | None:
        """What came of (stdout, stderr): both empty after `timeout` seconds, None when both have ended."""

    def status(self) -> int | None:
        """Once `read` gave None: the exit status of what ran there, None where it is not known."""

    def close(self) -> None:
        """Let go of the command; the command of a stream ends by that."""


class ProcessPipes:
    """The streams of a child process: a shell here, or `ssh`, which carries another machine's."""

    def __init__(self, argv: list[str], env: dict[str, str] | None = None) -> None:
        pipe = subprocess.PIPE
        # A session of its own: Ctrl-C reaches the launcher, which decides what it means.
        self._process = subprocess.Popen(
            argv, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0, env=env, start_new_session=True
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._stdin, self._streams = self._process.stdin, (self._process.stdout, self._process.stderr)
        self._feeding = False
        self._selector = selectors.DefaultSelector()
        for index, stream in enumerate(self._streams):
            self._selector.register(stream, selectors.EVENT_READ, index)

    def write(self, data: bytes) -> None:
        self._feeding = True
        view = memoryview(data)
        while view:
            if self._stdin.closed:
                raise BrokenPipeError
            view = view[os.write(self._stdin.fileno(), view) :]

    def end_input(self) -> None:
        with contextlib.suppress(OSError):
            self._stdin.close()

    def read(self, timeout: float | None) -> tuple[bytes, bytes] | None:
        if not self._selector.get_map():
            return None
        came = [b"", b""]
        for key, _ in self._selector.select(timeout):
            came[key.data] = os.read(key.fd, CHUNK)
            if not came[key.data]:
                self._selector.unregister(key.fileobj)
        return (came[0], came[1]) if self._selector.get_map() or any(came) else None

    def status(self) -> int | None:
        return self._process.wait()

    def close(self) -> None:
        if not self._feeding:  # else the thread that writes closes it, once the process no longer reads
            self.end_input()
        for stream in self._streams:
            stream.close()
        self._selector.close()
        for end in (None, signal.SIGTERM, signal.SIGKILL):
            if end:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, end)
            try:
                self._process.wait(0.5)  # a command ends by itself when its streams do, and so does ssh
                return
            except subprocess.TimeoutExpired:
                continue
        self._process.wait()
