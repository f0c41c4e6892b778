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
_FAILED = 255  # ssh's exit code where it is ssh that failed, or the command ended with just that
#: What ssh says where a command was surely not sent: the master is gone, or has no session left. Without a
#: master it speaks to a proxy that ends at once (`_shared`), UNKNOWN, which closes or cannot be written to.
_NOT_SENT = re.compile(
    r"session request failed|Control socket connect|open failed|Connection (closed by|to) UNKNOWN|"
    r"kex_exchange_identification|mux_client_hello_exchange|"
    r"mux_client_request_session: read from master failed"
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
        return [*host.ssh, "-S", self._control, *options, *login, "--", host.name]

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
            "ClearAllForwardings": "yes",
            "RemoteCommand": "none",
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
        if "UNKNOWN port" in said:  # a jump host or a proxy failed, and a persistent master hides why
            said = self._look() or said
        lines = [line.strip() for line in said.splitlines() if line.strip()] or ["ssh gave no reason"]
        if "Host key verification failed" in said or "HAS CHANGED" in said:
            return self._host_key_error(said)
        if "Permission denied" in said or "Too many authentication failures" in said:
            return refusal(self.host, f"what ssh tries ({lines[-1]})")
        reason = next((line for line in lines if "UNKNOWN port" not in line), lines[-1]).rstrip(".")
        return ConnectError(
            f"cannot reach {self.name} ({self.host.address}, port {self.host.port}): {reason}. Check the "
            "name, the port, the network (a VPN?), and HostName, Port and ProxyJump in the SSH configuration."
        )

    def _host_key_error(self, said: str) -> ConnectError:
        """Which host it is about, and its key: ssh shows an unknown one only where it is verbose."""
        about = re.search(r"host key (?:is known )?for (\S+) (?:and you|has changed)", said)
        if about and self.host.jumps and about[1] != self.host.key_name:
            return HostKeyError(
                f"the way to {self.name} leads through {about[1]}, whose key is unknown or not the known "
                f"one: `{' '.join([*self.host.ssh, '-o', 'StrictHostKeyChecking=ask', about[1]])}` shows it."
            )
        key = re.search(r"Server host key: (\S+) (\S+)", self._look("-v"))
        kind, fingerprint = (key[1], key[2]) if key else ("of some kind", "(not shown)")
        make = host_keys.changed if "HAS CHANGED" in said else host_keys.unknown
        return make(self.host, kind, fingerprint)

    def _look(self, *options: str) -> str:
        """What ssh says to a plain attempt that asks nothing and changes nothing."""
        single = ("-o", "ControlPath=none", "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes")
        command = self._ssh(*options, *single)
        command = [word for word in command if word not in ("-S", self._control)]
        limit = 2 * self.timeouts.connect
        try:
            done = subprocess.run([*command, "true"], text=True, capture_output=True, input="", timeout=limit)
        except subprocess.TimeoutExpired:
            return ""
        return done.stderr

    def _shared(self, *options: str) -> list[str]:
        """ssh through the master, and never by itself."""
        # If the master is gone, ssh would log in, and ask: a proxy that fails at once prevents it.
        only = ("ControlMaster=no", "ProxyCommand=false", "BatchMode=yes", "RemoteCommand=none")
        return self._ssh(*options, *(word for option in only for word in ("-o", option)))

    def _start(self, command: str) -> Pipes:
        return ProcessPipes([*self._shared("-T"), command])

    def _interact(self, line: str, tty: int) -> int:
        # With a terminal, all that the command prints comes on stdout: stderr has ssh's own words only.
        with tempfile.TemporaryFile() as said:
            code = subprocess.run([*self._shared("-tt"), line], stderr=said).returncode
            said.seek(0)
            words = said.read().decode(errors="replace").strip()
        if code < 0:  # ssh itself was killed
            raise self._cut_off(f"ssh was ended by signal {-code}")
        if code != _FAILED:
            return code
        unsent = _NOT_SENT.search(words)
        last = words.splitlines()[-1].strip() if words else "closed by the host or the network"
        if has_master(self.host, self._control):
            if unsent:
                raise RemoteError(f"{self.name}: the host refuses another session: {last}")
            return code
        self._ready = False
        raise self._cut_off(last)

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
    check = [*host.ssh, "-S", path, "-O", "check", "-l", host.user, "-p", str(host.port), "--", host.name]
    done = subprocess.run(check, stdin=subprocess.DEVNULL, capture_output=True)
    return done.returncode == 0


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
