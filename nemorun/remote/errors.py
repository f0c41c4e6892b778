"""What can go wrong between this machine and another one; each message says what to do."""

from __future__ import annotations

from nemorun.errors import NemorunError


class RemoteError(NemorunError):
    """A command or a file on another machine failed, for a reason that is neither below."""


class ConnectError(RemoteError):
    """The host could not be reached: its name, its address, its port, a jump host or a time-out."""


class HostKeyError(ConnectError):
    """The host's key is not known, or is not the known one; nothing was sent to it."""


class AuthenticationFailed(ConnectError):
    """The host refused every key and answer, or asked for an answer where nobody could be asked."""


class ConnectionLost(RemoteError):
    """The connection ended in the middle of something; the next call connects anew.

    `may_have_run` is False where the command has surely not begun and may be given again, and True where
    it may have run, in part or to its end: look for its traces before you repeat it.
    """

    def __init__(self, message: str, *, may_have_run: bool) -> None:
        super().__init__(message)
        self.may_have_run = may_have_run


class CommandTimeout(RemoteError):
    """A command took longer than its time limit. It was not stopped on a remote host: it may still run."""


class CommandFailed(RemoteError):
    """A command that had to succeed ended with another exit code than 0."""


class RemoteFileMissing(RemoteError):
    """There is no such file on the other machine."""
