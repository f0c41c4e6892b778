"""SSH by the system's OpenSSH and its shared connection (ControlMaster), which outlives this process.

For clusters where every login is dear: the user logs in once, with whatever the host asks for, and all
commands go through that connection. A master of the user's own is used where one lives, else one is started.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

from nemorun.remote import host_keys
from nemorun.remote.authentication import refusal
from nemorun.remote.connection import Connection, Timeouts
from nemorun.remote.errors import ConnectError, HostKeyError, RemoteError
from nemorun.remote.pipes import Pipes, ProcessPipes
from nemorun.remote.ssh_config import Host
from nemorun.remote.stream import Stream

PERSIST = 600  # seconds that an unused master of ours stays
#: What ssh says where a command was surely not sent: the master is gone, or has no session left.
_NOT_SENT = re.compile(
    r"session request failed|Control socket connect|open failed|Connection closed by UNKNOWN|"
    r"mux_client_hello_exchange|mux_client_request_session: read from master failed"
)


class OpenSSHConnection(Connection):
    """A host by `ssh`. Questions are asked by ssh itself, at the terminal or through SSH_ASKPASS.

    `close` leaves the master: the next command of this user needs no login. `stop` ends it.
    """

    transport = "openssh"

    def __init__(self, host: Host, *, shell: str = "/bin/sh", timeouts: Timeouts | None = None) -> None:
        super().__init__(host.alias, shell=shell, timeouts=timeouts)
        self.host = host
        self._ready = False
        self._control = host.control_path or str(_control_folder() / "%C")

    def _ssh(self, *options: str) -> list[str]:
        # These win over the configuration: the first value counts.
        host = self.host
        login = ["-l", host.user, "-p", str(host.port)]
        return [*host.ssh, "-S", self._control, *options, *login, "--", _name(host)]

    def _connect(self) -> None:
        if self._ready:
            return
        if not has_master(self.host, self._control):
            self._start_master()
        self._ready = True

    def _start_master(self) -> None:
        limits = self.timeouts
        asks = sys.stdin.isatty() or os.environ.get("SSH_ASKPASS_REQUIRE") in ("force", "prefer")
        options = {
            "ControlMaster": "yes",
            "ControlPersist": str(PERSIST),
            "StrictHostKeyChecking": "yes",
            "BatchMode": "no" if asks else "yes",
            "ConnectTimeout": f"{limits.connect:.0f}",
            "ServerAliveInterval": f"{max(1, limits.dead_after / 4):.0f}",
            "ServerAliveCountMax": "4",
        }
        words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        # A file and not a pipe: the master, which goes into the background, keeps it open.
        with tempfile.TemporaryFile() as said:
            command = self._ssh("-N", "-f", *words)
            limit = limits.connect + (limits.auth if asks else limits.connect)
            try:
                code = subprocess.run(
                    command,
                    stdin=None if asks else subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    timeout=limit,
                ).returncode
            except subprocess.TimeoutExpired:
                raise ConnectError(f"cannot reach {self.name}: no login within {limit:g} s.") from None
            except FileNotFoundError:
                raise ConnectError("there is no `ssh` program on this machine.") from None
            said.seek(0)
            words_of_ssh = said.read().decode(errors="replace")
        if code:
            raise self._refused(words_of_ssh)

    def _refused(self, said: str) -> ConnectError:
        """ssh's complaint as one of our errors."""
        last = said.strip().splitlines()[-1] if said.strip() else "ssh gave no reason"
        if "Host key verification failed" in said or "host key is known" in said or "HAS CHANGED" in said:
            return self._host_key_error(said)
        if "Permission denied" in said or "Too many authentication failures" in said:
            return refusal(self.host, f"what ssh tries ({last})")
        return ConnectError(
            f"cannot reach {self.name} ({self.host.address}, port {self.host.port}): {last.strip()} Check "
            f"the name, the "
            "port, the network (a VPN?), and HostName, Port and ProxyJump in the SSH configuration."
        )

    def _host_key_error(self, said: str) -> ConnectError:
        """ssh tells an unknown key's fingerprint only when it is asked to be verbose: look once more."""
        if self.host.jumps and not re.search(rf"known for {re.escape(self.host.key_name)} ", said):
            before = re.search(r"known for (\S+) and", said)
            where = f"the jump host {before[1]}" if before else "a jump host"
            return HostKeyError(
                f"the way to {self.name}: the key of {where} is not the known one: {said.strip()}"
            )
        look = self._ssh(
            "-v", "-o", "ControlPath=none", "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes"
        )
        try:
            seen = subprocess.run(
                [*look, "true"],
                text=True,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=2 * self.timeouts.connect,
            ).stderr
        except subprocess.TimeoutExpired:
            seen = ""
        key = re.search(r"Server host key: (\S+) (\S+)", seen)
        kind, fingerprint = (key[1], key[2]) if key else ("of some kind", "(not shown)")
        make = host_keys.changed if "HAS CHANGED" in said else host_keys.unknown
        return make(self.host, kind, fingerprint)

    def _start(self, command: str) -> Pipes:
        # If the master is gone, ssh would log in by itself, and ask: a proxy that fails at once prevents it.
        options = ("-o", "ControlMaster=no", "-o", "ProxyCommand=false", "-o", "BatchMode=yes", "-T")
        return ProcessPipes([*self._ssh(*options), command])

    def _broken(self, stream: Stream) -> RemoteError:
        said = stream.outside or stream.stderr.strip()
        last = said.splitlines()[-1].strip() if said else "closed by the host or the network"
        unsent = not stream.began and _NOT_SENT.search(said) is not None
        if has_master(self.host, self._control):
            if unsent:
                return RemoteError(f"{self.name}: the host refuses another session: {last}")
            return self._ended_early(stream)
        self._ready = False
        return self._lost(last, may_have_run=not unsent)

    def close(self) -> None:
        self._ready = False

    def stop(self) -> None:
        """End the master, and with it all that goes through it, the user's own shells too."""
        self.close()
        subprocess.run(self._ssh("-O", "exit"), stdin=subprocess.DEVNULL, capture_output=True)


def has_master(host: Host, control: str | None = None) -> bool:
    """Whether a shared connection to `host` lives, at `control` or where its configuration puts it."""
    path = control or host.control_path
    if not path or ("%" not in path and not Path(path).exists()):
        return False
    check = [*host.ssh, "-S", path, "-O", "check", "-l", host.user, "-p", str(host.port), "--", _name(host)]
    done = subprocess.run(check, stdin=subprocess.DEVNULL, capture_output=True)
    return done.returncode == 0


def _name(host: Host) -> str:
    """The host without user and port, which are given as options."""
    return host.alias.removeprefix("ssh://").rpartition("@")[2].partition(":")[0].rstrip("/")


def _control_folder() -> Path:
    """A private folder with a short path: a socket's path has at most some 100 bytes."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    folder = (
        Path(base) / "nemorun" if base and Path(base).is_dir() else Path("/tmp") / f"nemorun-{os.getuid()}"
    )
    folder.mkdir(mode=0o700, exist_ok=True)
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077:
        raise ConnectError(
            f"{folder} must be a folder of yours that nobody else can enter; it holds the sockets of shared "
            "connections. Remove it, or set ControlPath in the SSH configuration."
        )
    return folder
