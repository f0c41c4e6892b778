"""What `~/.ssh/config` says about a host: asked of `ssh -G`, so that all in it means what ssh means."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from nemorun.remote.errors import ConnectError

#: `name:port` and `[address]:port`; an address of IPv6 alone has colons, too.
_WITH_PORT = re.compile(r"[^:\[\]]+:\d+|[^:]*\[.*\]:\d+")


@dataclass(frozen=True)
class Host:
    """A host as ssh would reach it. `alias` is the name that the user has for it."""

    alias: str
    address: str
    user: str
    port: int
    key_name: str  # what it is called in known_hosts
    identities: tuple[Path, ...]
    identities_only: bool
    known_hosts: tuple[Path, ...]
    jumps: tuple[str, ...]
    proxy_command: str | None
    control_path: str | None
    config: Path | None

    @property
    def name(self) -> str:
        """The alias without the user."""
        return self.alias.rpartition("@")[2]

    @property
    def ssh(self) -> list[str]:
        """The beginning of an `ssh` command for this host's configuration."""
        return ["ssh", *(["-F", str(self.config)] if self.config else [])]


def lookup(
    host: str, config: Path | None = None, *, user: str | None = None, port: int | None = None
) -> Host:
    """Settings for `host` (`name`, `user@name:port` or `ssh://user@name:port`) in `config`, by default the
    user's own.

    `user` and `port` win over the file. Raises ConnectError for a name that ssh refuses, a broken file, no
    ssh.
    """
    if _WITH_PORT.fullmatch(host):
        host = f"ssh://{host}"
    if host.startswith("ssh://"):  # ssh reads these too, but not with every address
        try:
            address = urlsplit(host)
            host, user, port = address.hostname or "", user or address.username, port or address.port
        except ValueError as error:
            raise ConnectError(f"{host!r} is not the name of a host: {error}.") from error
    if not host or host.startswith("-") or re.search(r"[\s\x00]", host):
        raise ConnectError(f"{host!r} is not the name of a host.")
    if config and not config.is_file():
        raise ConnectError(f"there is no SSH configuration {config}.")
    command = ["ssh", "-G", *(["-F", str(config)] if config else [])]
    command += [*(["-l", user] if user else []), *(["-p", str(port)] if port else []), "--", host]
    try:
        done = subprocess.run(command, text=True, capture_output=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise ConnectError(
            "there is no `ssh` program on this machine; it reads the SSH configuration. Install OpenSSH's "
            "client "
            "(on Debian and Ubuntu: apt-get install openssh-client)."
        ) from None
    if done.returncode:
        raise ConnectError(f"{host}: ssh refuses its configuration: {done.stderr.strip()}")
    return _read(host, config, done.stdout)


def _read(host: str, config: Path | None, printed: str) -> Host:
    said: dict[str, list[str]] = {}
    for line in printed.splitlines():
        key, _, value = line.partition(" ")
        said.setdefault(key, []).append(value)

    def one(key: str) -> str | None:
        value = said.get(key, ["none"])[0]
        return None if value == "none" else value

    address, port = one("hostname") or host, int(one("port") or 22)
    tokens = {
        "h": address,
        "n": host,
        "p": str(port),
        "r": one("user") or "",
        "u": os.environ.get("USER", ""),
    }
    tokens |= {"d": str(Path.home()), "%": "%"}

    def expand(text: str) -> str:
        return re.sub(r"%([hnprud%])", lambda match: tokens[match[1]], text)

    def paths(*keys: str) -> tuple[Path, ...]:
        words = [word for key in keys for value in said.get(key, []) for word in value.split()]
        return tuple(Path(expand(word)).expanduser() for word in words if word != "none")

    alias = one("hostkeyalias")
    proxy = one("proxycommand")
    jump = one("proxyjump")
    return Host(
        alias=host,
        address=address,
        user=tokens["r"],
        port=port,
        key_name=alias or (address if port == 22 else f"[{address}]:{port}"),
        identities=tuple(
            Path(os.path.expandvars(expand(value))).expanduser() for value in said.get("identityfile", [])
        ),
        identities_only=one("identitiesonly") == "yes",
        known_hosts=paths("userknownhostsfile", "globalknownhostsfile"),
        jumps=tuple(jump.split(",")) if jump else (),
        proxy_command=expand(proxy) if proxy else None,
        control_path=one("controlpath"),
        config=config,
    )


def jump_host(host: Host) -> Host | None:
    """The last host on the way to `host`, reached by way of those before it; None where there is none."""
    if not host.jumps:
        return None
    *before, last = host.jumps
    jump = lookup(last, host.config)
    return replace(jump, jumps=tuple(before)) if before else jump
