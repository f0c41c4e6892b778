"""What a launcher does on another machine, the same for every transport: run, stream, interact, put, get.

A transport says how to connect and how to send off one command; all the rest stands here and is made of
commands. So there is no second protocol for files, and nothing beyond a POSIX shell is needed on the other
side.
"""

from __future__ import annotations

import abc
import contextlib
import io
import os
import secrets
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, ClassVar

from nemorun.remote import terminal
from nemorun.remote.errors import (
    CommandFailed,
    ConnectionLost,
    RemoteError,
    RemoteFileMissing,
)
from nemorun.remote.framing import MAX_COMMAND, new_token, wrap, wrap_interactive
from nemorun.remote.paths import quote_path
from nemorun.remote.pipes import Pipes
from nemorun.remote.stream import Stream

#: sshd allows 10 sessions a connection (its MaxSessions); a shared one may serve the user's shells too.
MAX_RUNS = 4
MAX_STREAMS = 4

_MISSING = 44  # exit code of our own script: there is no such file


@dataclass(frozen=True)
class Timeouts:
    """Limits in seconds: reaching a host, proving who you are (a second factor takes a while), and silence.

    `dead_after` is how long nothing may be acknowledged by a host before the connection counts as lost.
    """

    connect: float = 15
    auth: float = 120
    dead_after: float = 60


@dataclass(frozen=True)
class Completed:
    """How a command ended: its exit code, and its own output without what the login shell printed."""

    returncode: int
    stdout: str
    stderr: str


class Connection(abc.ABC):
    """One connection to one machine. It connects at the first call; after ConnectionLost, at the next one.

    Several threads may use it: at most `MAX_RUNS` commands run at once, others wait, and at most
    `MAX_STREAMS` streams are open. Every error is a RemoteError.
    """

    transport: ClassVar[str]

    def __init__(self, name: str, *, shell: str = "/bin/sh", timeouts: Timeouts | None = None) -> None:
        self.name = name
        self.shell = shell
        self.timeouts = timeouts or Timeouts()
        self._connecting = threading.Lock()
        self._runs = threading.BoundedSemaphore(MAX_RUNS)
        self._streams = threading.BoundedSemaphore(MAX_STREAMS)

    # What a transport provides.

    @abc.abstractmethod
    def _connect(self) -> None:
        """Connect, where that is not done yet. Raises ConnectError and its kinds."""

    @abc.abstractmethod
    def _start(self, command: str) -> Pipes:
        """Send a line to the login shell; ConnectionLost(may_have_run=False) where it was surely not sent."""

    @abc.abstractmethod
    def _broken(self, stream: Stream) -> RemoteError:
        """Why a command's output ended without its exit code."""

    @abc.abstractmethod
    def _interact(self, line: str, tty: int) -> int:
        """Give the terminal to a line of the login shell until that ends; its exit code."""

    @abc.abstractmethod
    def close(self) -> None:
        """End the connection. Again: nothing."""

    # What a launcher uses.

    def connect(self) -> None:
        """Connect now, rather than at the first command."""
        with self._connecting:
            self._connect()

    def run(
        self,
        command: str,
        stdin: bytes | str | Path = b"",
        *,
        timeout: float | None = None,
        check: bool = False,
    ) -> Completed:
        """Run a POSIX shell command to its end; `stdin` is its input, a Path the content of that file.

        `timeout` in seconds. `check`: another exit code than 0 raises CommandFailed with what it wrote on
        stderr, of which the last MiB is kept. The command line can be seen by others on that machine: secrets
        and what is long belong into `stdin`.
        """
        output = bytearray()
        code, stderr = self._execute(command, stdin, timeout, output.extend)
        if check and code:
            said = stderr.strip() or output.decode(errors="replace").strip()
            raise CommandFailed(f"{self.name}: exit code {code} from `{_short(command)}`: {said[-2000:]}")
        return Completed(code, output.decode(errors="replace"), stderr)

    def stream(self, command: str) -> Stream:
        """Start a command whose output is read while it runs; closing the stream ends the command.

        It has no input. Use it as a context manager.
        """
        self.connect()
        if not self._streams.acquire(blocking=False):
            raise RemoteError(
                f"{self.name}: {MAX_STREAMS} streams are open on this connection, the most that leaves room "
                "for commands (sshd allows 10 sessions). Close one, or follow several files with one command."
            )
        return self._begin(command, self._streams, ends_with_reader=True)

    def interact(self, command: str) -> int:
        """Run a command with the user's terminal as its own: keys, colours, size. Returns its exit code.

        The terminal is given back as it was. RemoteError where standard input is none; ConnectionLost.
        """
        tty = terminal.require()
        line = _fitting(wrap_interactive(command, self.shell), self.name)
        self.connect()
        with self._runs, terminal.lent(tty):
            try:
                return self._interact(line, tty)
            except ConnectionLost:
                print("\r", file=sys.stderr)  # below what stands there
                raise

    def put(
        self, data: bytes | Path, remote: str, *, mode: int = 0o600, timeout: float | None = None
    ) -> None:
        """Write a file whole or not at all: nobody ever sees a half of it.

        `data` is its content, or a file here. `remote` may begin with `~` and hold variables of the other
        machine. Missing folders are made, private (0700).
        """
        with _source(data) as source:
            size = source.seek(0, os.SEEK_END)
        # The size is checked because a connection that breaks looks like the end of the input over there.
        script = (
            f"umask 077; target={quote_path(remote)}; part=$target.{secrets.token_hex(8)}; "
            'if [ -d "$target" ]; then echo "it is a folder" >&2; exit 1; fi; '
            'mkdir -p -- "$(dirname -- "$target")" || exit 1; trap \'rm -f -- "$part"\' EXIT; '
            f'cat > "$part" && [ "$(wc -c < "$part")" -eq {size} ] && chmod {mode:o} "$part" '
            '&& mv -f -- "$part" "$target"'
        )
        code, stderr = self._execute(script, data, timeout, len)
        if code:
            raise RemoteError(
                f"{self.name}: cannot write {remote}: {stderr.strip() or 'not all of it arrived'}."
            )

    def read(self, remote: str, offset: int = 0, size: int | None = None) -> bytes:
        """A file's bytes from `offset` on, at most `size`; empty at its end. Or RemoteFileMissing."""
        output = bytearray()
        self._fetch(remote, offset, size, output.extend)
        return bytes(output)

    def get(self, remote: str, local: Path) -> None:
        """Copy a file to this machine, private (0600), whole or not at all."""
        part = local.with_name(f"{local.name}.{secrets.token_hex(8)}")
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                self._fetch(remote, 0, None, file.write)
            part.replace(local)
        except OSError as error:
            raise RemoteError(f"cannot write {local}: {error.strerror}.") from error
        finally:
            part.unlink(missing_ok=True)

    def _fetch(self, remote: str, offset: int, size: int | None, sink: Callable[[bytes], object]) -> None:
        limit = "" if size is None else f" | head -c {size}"
        script = (
            f'file={quote_path(remote)}; [ -e "$file" ] || exit {_MISSING}; '
            f'[ -f "$file" ] && [ -r "$file" ] || {{ echo "not a readable file" >&2; exit 1; }}; '
            f'tail -c +{offset + 1} -- "$file"{limit}'
        )
        code, stderr = self._execute(script, b"", None, sink)
        if code == _MISSING:
            raise RemoteFileMissing(f"{self.name}: there is no file {remote}.")
        if code:
            raise RemoteError(f"{self.name}: cannot read {remote}: {stderr.strip()}.")

    def _execute(
        self, command: str, stdin: bytes | str | Path, timeout: float | None, sink: Callable[[bytes], object]
    ) -> tuple[int, str]:
        with contextlib.ExitStack() as unless_fed:
            source = unless_fed.enter_context(_source(stdin))
            self.connect()
            self._runs.acquire()
            stream = self._begin(command, self._runs, ends_with_reader=False)
            unless_fed.pop_all()
        with stream:
            stream.feed(source)  # which closes it
            stream.collect(timeout, sink)
        assert stream.returncode is not None
        return stream.returncode, stream.stderr

    def _begin(self, command: str, slots: threading.BoundedSemaphore, *, ends_with_reader: bool) -> Stream:
        with contextlib.ExitStack() as unless_started:
            unless_started.callback(slots.release)
            token = new_token()
            line = wrap(command, token, self.shell, ends_with_reader=ends_with_reader)
            pipes = self._start(_fitting(line, self.name))
            unless_started.pop_all()
        return Stream(pipes, token, self.name, self._broken, slots.release)

    def _ended_early(self, stream: Stream) -> RemoteError:
        """For `_broken`, where the connection lives: the shell ended before it could tell the exit code."""
        status = stream.pipes.status()
        how = "by a signal" if status is None or status < 0 else f"with status {status}"
        if stream.began:
            return RemoteError(f"{self.name}: the shell ended {how}; the command has run in part.")
        said = f", after it printed: {stream.outside}" if stream.outside else ""
        return RemoteError(f"{self.name}: the login shell ended {how} before it came to the command{said}.")

    def _lost(self, what: str, *, may_have_run: bool) -> ConnectionLost:
        advice = (
            "The command may have run: look for its traces before you repeat it."
            if may_have_run
            else "The command has not run: it can be given again."
        )
        return ConnectionLost(
            f"{self.name}: the connection was lost ({what}). {advice}", may_have_run=may_have_run
        )

    def _cut_off(self, what: str) -> ConnectionLost:
        """For `_interact`: the user sat there, and knows what has run."""
        return ConnectionLost(
            f"{self.name}: the connection was lost ({what}), and the session with it.", may_have_run=True
        )

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _source(stdin: bytes | str | Path) -> BinaryIO:
    if not isinstance(stdin, Path):
        return io.BytesIO(stdin.encode() if isinstance(stdin, str) else stdin)
    try:
        return stdin.open("rb")
    except OSError as error:
        raise RemoteError(f"cannot read {stdin}: {error.strerror}.") from error


def _fitting(line: str, name: str) -> str:
    if len(line) > MAX_COMMAND:
        raise RemoteError(
            f"{name}: a command of {len(line):,} characters; at most {MAX_COMMAND:,} fit. "
            "Give what is long as its input: run('sh', stdin=script)."
        )
    return line


def _short(command: str) -> str:
    line = " ".join(command.split())
    return line if len(line) <= 80 else f"{line[:79]}…"
