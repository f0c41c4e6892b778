"""This machine, with the interface of another one: for a launcher that runs on a cluster's login node."""

from __future__ import annotations

import subprocess

from nemorun.remote.connection import Connection, Timeouts
from nemorun.remote.errors import ConnectError, RemoteError
from nemorun.remote.pipes import Pipes, ProcessPipes
from nemorun.remote.stream import Stream


class LocalConnection(Connection):
    """Runs commands here, in `/bin/sh`, without SSH."""

    transport = "local"

    def __init__(self, *, shell: str = "/bin/sh", timeouts: Timeouts | None = None) -> None:
        super().__init__("this machine", shell=shell, timeouts=timeouts)

    def _connect(self) -> None:
        pass

    def _start(self, command: str) -> Pipes:
        try:
            return ProcessPipes(["/bin/sh", "-c", command])
        except OSError as error:
            raise ConnectError(f"cannot start /bin/sh here: {error.strerror}.") from error

    def _broken(self, stream: Stream) -> RemoteError:
        return self._ended_early(stream)

    def _interact(self, line: str, tty: int) -> int:
        try:
            code = subprocess.run(["/bin/sh", "-c", line]).returncode
        except OSError as error:
            raise ConnectError(f"cannot start /bin/sh here: {error.strerror}.") from error
        return code if code >= 0 else 128 - code

    def close(self) -> None:
        pass
