"""One running command: feeds its input, gives its output as it comes, and says how it ended."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import BinaryIO

from nemorun.remote.errors import CommandTimeout, RemoteError
from nemorun.remote.framing import Frame
from nemorun.remote.pipes import CHUNK, Pipes

KEPT_STDERR = 1 << 20  # bytes: the last of what a command complained


class Stream:
    """Output of a command, as an iterator of chunks and as a context manager that ends the command.

    `returncode` is None until the end was read; `stderr` is what the command has written there so far.
    """

    def __init__(
        self,
        pipes: Pipes,
        token: str,
        name: str,
        broken: Callable[[Stream], RemoteError],
        done: Callable[[], None],
    ) -> None:
        self.pipes, self.name = pipes, name
        self._out, self._err = Frame(token), Frame(token)
        self._stderr = b""
        self._broken, self._done = broken, done
        self._closed = False

    @property
    def returncode(self) -> int | None:
        return self._out.code

    @property
    def stderr(self) -> str:
        return self._stderr.decode(errors="replace")

    @property
    def began(self) -> bool:
        """Whether the other machine's shell has come to the command."""
        return self._out.began

    @property
    def outside(self) -> str:
        """What came before the command began: a shell's banner, or why it never began."""
        return (self._out.outside + self._err.outside).decode(errors="replace").strip()

    def read(self, timeout: float | None = None) -> bytes | None:
        """What has come: empty after `timeout` seconds of silence, None at the end."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not (self._out.code is not None and self._err.code is not None):
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            came = self.pipes.read(left)
            if came is None:
                if self._out.code is not None:  # only the mark of stderr is missing: the exit code is known
                    break
                raise self._broken(self)
            out, err = came
            self._stderr = (self._stderr + self._err.feed(err))[-KEPT_STDERR:]
            if own := self._out.feed(out):
                return own
            if deadline is not None and time.monotonic() >= deadline:
                return b""
        self.close()
        return None

    def feed(self, source: BinaryIO) -> None:
        """Start to give all of `source` to the command's input; `read` goes on meanwhile."""

        def give() -> None:
            # The command may close its input early, or the connection may end: `read` tells which.
            with contextlib.suppress(OSError), source:
                while chunk := source.read(CHUNK):
                    self.pipes.write(chunk)
            self.pipes.end_input()

        threading.Thread(target=give, name=f"input of {self.name}", daemon=True).start()

    def collect(self, timeout: float | None, sink: Callable[[bytes], object]) -> None:
        """Give all output to `sink`; CommandTimeout where that takes longer than `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise CommandTimeout(
                    f"{self.name}: not done within {timeout:g} s. It may still run there; look for what "
                    "it does before you repeat it."
                )
            chunk = self.read(left)
            if chunk is None:
                return
            sink(chunk)

    def close(self) -> None:
        """Let go of the command: it ends with its reader. Again: nothing."""
        if not self._closed:
            self._closed = True
            self.pipes.close()
            self._done()

    def __iter__(self) -> Iterator[bytes]:
        while (chunk := self.read()) is not None:
            yield chunk

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
