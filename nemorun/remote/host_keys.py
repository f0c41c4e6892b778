"""Is this host the one that it was? Its key is compared with known_hosts before anything else is sent."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from nemorun.remote.errors import HostKeyError
from nemorun.remote.ssh_config import Host

if TYPE_CHECKING:
    import paramiko


def load(files: Iterable[Path]) -> paramiko.HostKeys:
    """All keys in those files that exist; lines that cannot be read are passed over, as ssh does."""
    import paramiko

    keys = paramiko.HostKeys()
    for file in files:
        if file.is_file():
            keys.load(str(file))
    return keys


def check(host: Host, known: paramiko.HostKeys, key: paramiko.PKey) -> None:
    """Raise HostKeyError unless `key` is a known one of `host`."""
    ours = known.lookup(host.key_name)
    expected = ours.get(key.get_name()) if ours else None
    if expected == key:
        return
    fingerprint = sha256(key.asbytes())
    if ours:
        raise changed(host, key.get_name(), fingerprint)
    raise unknown(host, key.get_name(), fingerprint)


def unknown(host: Host, kind: str, fingerprint: str) -> HostKeyError:
    login = ["-l", host.user, "-p", str(host.port), host.name]
    command = shlex.join([*host.ssh, "-o", "StrictHostKeyChecking=ask", *login, "true"])
    return HostKeyError(
        f"{_name(host)} is not a known host: its key is {kind} {fingerprint}. Ask the people who run it "
        f"whether this is "
        f"so, then accept it with: {command}"
    )


def changed(host: Host, kind: str, fingerprint: str) -> HostKeyError:
    files = [file for file in host.known_hosts if file.is_file()]
    command = shlex.join(["ssh-keygen", "-R", host.key_name, *(["-f", str(files[0])] if files else [])])
    return HostKeyError(
        f"the key of {_name(host)} is not the known one: it is {kind} {fingerprint} now. Either the host "
        f"was set up "
        f"anew, or somebody stands between you and it. Nothing was sent. Ask the people who run it; if they "
        f"have "
        f"changed the key, forget the old one with: {command}"
    )


def sha256(key: bytes) -> str:
    """A key's fingerprint as ssh prints it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")


def _name(host: Host) -> str:
    return host.alias if host.alias == host.key_name else f"{host.alias} ({host.key_name})"
