"""Tells a command's own output from what the login shell prints around it.

A login shell may print a banner before the command starts, on either stream. So the command is wrapped in two
marks for each stream; all outside them is dropped. The second mark carries the exit code: a stream that ends
without it tells that the command did not come to its end, whatever the reason.
"""

from __future__ import annotations

import base64
import secrets
import shlex

#: Linux takes at most 128 KiB in one argument of a program.
MAX_COMMAND = 100_000

_RUN = "(eval {command}); nemorun_code=$?"
# Ends the command with its reader: where the connection closes, `cat` sees the end of the input, and the
# command's session is ended. `setsid` is what makes it a session; where there is none, the command's own
# process is ended.
_FOLLOW = (
    "exec 3<&0; $(command -v setsid) {shell} -c {command} </dev/null 3<&- & nemorun_pid=$!; "
    '{{ cat <&3; kill -s TERM -- "-$nemorun_pid" || kill -s TERM "$nemorun_pid"; }} >/dev/null 2>&1 & '
    "nemorun_watch=$!; wait $nemorun_pid; nemorun_code=$?; kill $nemorun_watch 2>/dev/null"
)


def new_token() -> str:
    """What no output holds by chance."""
    return f"nemorun-{secrets.token_hex(8)}"


def wrap(command: str, token: str, shell: str = "/bin/sh", *, ends_with_reader: bool = False) -> str:
    """The command line for the other machine's login shell, whichever that is; `shell` runs the command.

    The mark's words stand apart in it, so that a listing of processes does not show a whole mark.
    """
    mark = f"printf '%s:%s\\n' {token} begin; printf '%s:%s\\n' {token} begin >&2"
    end = f"printf '%s:end:%d\\n' {token} $nemorun_code; printf '%s:end:%d\\n' {token} $nemorun_code >&2"
    template = _FOLLOW if ends_with_reader else _RUN
    return _line(f"{mark}; {template.format(command=shlex.quote(command), shell=shell)}; {end}", shell)


def wrap_interactive(command: str, shell: str = "/bin/sh") -> str:
    """The same for a command that has a terminal, whose output is for a person and needs no marks.

    The outer shell stays, so that a command ended by a signal has an exit code; keys that interrupt the
    command must not end that shell.
    """
    return _line(f"trap : INT QUIT; {shell} -c {shlex.quote(command)}; exit $?", shell)


def _line(script: str, shell: str) -> str:
    if "\n" in script or "!" in script:  # csh, as a login shell, reads both even within quotes
        code = base64.b64encode(script.encode()).decode()
        script = f'eval "$(echo {code} | base64 -d)"'
    return f"exec {shell} -c {shlex.quote(script)}"


class Frame:
    """One stream, as it arrives: `feed` takes what came and gives what the command itself wrote.

    `began` and `code` (the exit code, None before the end) tell how far the command has come.
    `outside` is the last of what stood before the first mark, to be shown where no mark ever comes.
    """

    def __init__(self, token: str) -> None:
        self.began = False
        self.code: int | None = None
        self._begin = f"{token}:begin\n".encode()
        self._end = f"{token}:end:".encode()
        self._held = b""

    @property
    def outside(self) -> bytes:
        return b"" if self.began else self._held[-2000:]

    def feed(self, data: bytes) -> bytes:
        """Bytes of the command, without those that may yet turn out to be the beginning of a mark."""
        if self.code is not None:
            return b""
        self._held += data
        if not self.began:
            before, mark, after = self._held.partition(self._begin)
            if not mark:
                self._held = before[-65536:]
                return b""
            self.began, self._held = True, after
        own, mark, rest = self._held.partition(self._end)
        if mark:
            digits, newline, _ = rest.partition(b"\n")
            self._held = mark + rest
            if newline:
                self.code, self._held = int(digits), b""
            return own
        keep = _overlap(own, self._end)
        self._held = own[len(own) - keep :]
        return own[: len(own) - keep]

    def rest(self) -> bytes:
        """What was held back, once it is sure that nothing more comes."""
        return self._held if self.began else b""


def _overlap(text: bytes, mark: bytes) -> int:
    """How many bytes at the end of `text` are a beginning of `mark`."""
    for size in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:size]):
            return size
    return 0
