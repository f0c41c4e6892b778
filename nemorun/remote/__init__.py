"""Commands and files on another machine: `connect` gives a `Connection`, over SSH or to this machine itself.

Nothing of SSH is imported before a connection is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nemorun.errors import did_you_mean
from nemorun.remote.errors import RemoteError

if TYPE_CHECKING:
    from nemorun.remote.connection import Connection, Timeouts
    from nemorun.remote.prompting import Prompt

__all__ = ["TRANSPORTS", "connect"]

TRANSPORTS = ("paramiko", "openssh", "local")


def connect(
    host: str = "",
    *,
    transport: str | None = None,
    user: str | None = None,
    port: int | None = None,
    config: Path | None = None,
    prompt: Prompt | None = None,
    shell: str = "/bin/sh",
    timeouts: Timeouts | None = None,
) -> Connection:
    """A connection to `host`, a name of the SSH configuration (`config`, by default the user's own).

    It connects at its first use. `transport` is one of `TRANSPORTS`; without one it is `openssh` where a
    shared connection to the host lives, else `paramiko`. `local` takes no host. `prompt` answers questions
    (paramiko); `shell` runs the commands, `bash -l` where they need what a login sets up.
    """
    if transport == "local":
        from nemorun.remote.local import LocalConnection

        return LocalConnection(shell=shell, timeouts=timeouts)
    if transport not in (None, *TRANSPORTS):
        allowed = ", ".join(TRANSPORTS)
        near = did_you_mean(str(transport), TRANSPORTS)
        raise RemoteError(f"transport={transport!r}: it is one of {allowed}{near}.")

    from nemorun.remote.openssh import OpenSSHConnection, has_master
    from nemorun.remote.ssh_config import lookup

    found = lookup(host, config, user=user, port=port)
    if transport == "openssh" or (transport is None and has_master(found)):
        return OpenSSHConnection(found, shell=shell, timeouts=timeouts)

    from nemorun.remote.ssh import SSHConnection

    return SSHConnection(found, prompt=prompt, shell=shell, timeouts=timeouts)
