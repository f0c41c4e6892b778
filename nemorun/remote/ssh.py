"""SSH by paramiko: one connection, made by this process, for all that a launcher's command does."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
from typing import TYPE_CHECKING, Any

from nemorun.remote import authentication, host_keys, prompting, terminal
from nemorun.remote.connection import Connection, Timeouts
from nemorun.remote.errors import ConnectError, RemoteError
from nemorun.remote.keyboard import give_terminal
from nemorun.remote.pipes import CHUNK, Pipes
from nemorun.remote.ssh_config import Host, jump_host
from nemorun.remote.stream import Stream

if TYPE_CHECKING:
    import paramiko

_MAX_JUMPS = 8


class SSHConnection(Connection):
    """A host by paramiko, through its jump hosts; `prompt` answers what hosts ask for (2FA)."""

    transport = "paramiko"

    def __init__(
        self,
        host: Host,
        *,
        prompt: prompting.Prompt | None = None,
        shell: str = "/bin/sh",
        timeouts: Timeouts | None = None,
    ) -> None:
        super().__init__(host.alias, shell=shell, timeouts=timeouts)
        self.host = host
        self._prompt = prompt or prompting.terminal
        self._hops: list[paramiko.Transport] = []  # the first jump host first, the host itself last

    def _connect(self) -> None:
        if not self._hops:
            # Else paramiko's log, tracebacks too, goes to stderr in programs that do not set up logging.
            logging.getLogger("paramiko").addHandler(logging.NullHandler())
            self._reach(self.host, 0)

    def _reach(self, host: Host, depth: int) -> None:
        """Log in to `host`, and before that to those on the way to it."""
        import paramiko

        if depth > _MAX_JUMPS:
            raise ConnectError(
                f"{self.name}: more than {_MAX_JUMPS} jump hosts; ProxyJump seems to go in a circle."
            )
        if jump := jump_host(host):
            self._reach(jump, depth + 1)
        try:
            transport = paramiko.Transport(self._socket(host))
        except (paramiko.SSHException, OSError) as error:
            self.close()
            raise _unreachable(host, error) from error
        self._hops.append(transport)
        try:
            self._log_in(transport, host)
        except BaseException:
            self.close()
            raise

    def _socket(self, host: Host) -> Any:
        """Something to speak SSH over: a TCP connection, a channel of the jump host, a program's streams."""
        import paramiko

        if self._hops:
            return self._hops[-1].open_channel(
                "direct-tcpip", (host.address, host.port), ("127.0.0.1", 0), timeout=self.timeouts.connect
            )
        if host.proxy_command:
            return paramiko.ProxyCommand(host.proxy_command)
        connection = socket.create_connection((host.address, host.port), self.timeouts.connect)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Without it the kernel tries for a quarter of an hour before it calls a silent host dead.
        option = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux
        if option is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, int(self.timeouts.dead_after * 1000))
        return connection

    def _log_in(self, transport: paramiko.Transport, host: Host) -> None:
        import paramiko

        known = host_keys.load(host.known_hosts)
        transport.banner_timeout = transport.handshake_timeout = self.timeouts.connect
        options = transport.get_security_options()
        kinds = [kind for name in known.lookup(host.key_name) or () for kind in _signatures(name)]
        wanted = [kind for kind in kinds if kind in options.key_types]
        options.key_types = [*wanted, *(kind for kind in options.key_types if kind not in wanted)]
        try:
            transport.start_client(timeout=self.timeouts.connect)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise _unreachable(host, error) from error
        host_keys.check(host, known, transport.get_remote_server_key())
        authentication.authenticate(transport, host, self._prompt, self.timeouts.auth)
        # Keeps gateways from forgetting the connection, and gives TCP something to find unacknowledged.
        transport.set_keepalive(max(1, int(self.timeouts.dead_after / 4)))

    def _start(self, command: str) -> Pipes:
        return _ChannelPipes(self._open(command))

    def _interact(self, line: str, tty: int) -> int:
        channel = self._open(line, tty)
        try:
            give_terminal(channel, tty)
            if (code := _status(channel)) is not None:
                return code
            ended_in_order = channel.eof_received
        finally:
            channel.close()
        if ended_in_order:
            raise RemoteError(f"{self.name}: the session ended without an exit code; the host has killed it.")
        raise self._cut_off(self._why_lost())

    def _open(self, command: str, tty: int | None = None) -> paramiko.Channel:
        """A session that runs the command, with a terminal like `tty` where that is given."""
        import paramiko

        hops = self._hops
        try:
            channel = hops[-1].open_session(timeout=self.timeouts.dead_after)
        except paramiko.ChannelException as refused:
            raise RemoteError(f"{self.name}: the host refuses another session: {refused.text}.") from refused
        except (paramiko.SSHException, OSError, EOFError, IndexError) as error:
            self.close()
            raise self._lost(str(error) or "closed", may_have_run=False) from error
        try:
            if tty is not None:
                columns, rows = terminal.size(tty)
                channel.get_pty(os.environ.get("TERM", "dumb"), columns, rows)
            channel.exec_command(command)
        except (paramiko.SSHException, OSError, EOFError) as error:
            if hops[-1].is_active():
                raise RemoteError(f"{self.name}: the host refuses to run commands: {error}.") from error
            self.close()
            raise self._lost(str(error) or "closed", may_have_run=True) from error
        return channel

    def _broken(self, stream: Stream) -> RemoteError:
        assert isinstance(stream.pipes, _ChannelPipes)
        if stream.pipes.ended_in_order:
            return self._ended_early(stream)
        return self._lost(self._why_lost(), may_have_run=True)

    def _why_lost(self) -> str:
        error = self._hops[-1].get_exception() if self._hops else None
        self.close()
        return str(error or "") or "closed by the host or the network"

    def close(self) -> None:
        hops, self._hops = self._hops, []
        for transport in reversed(hops):
            transport.close()


class _ChannelPipes:
    """One session of a paramiko connection."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel
        self._selector = selectors.DefaultSelector()
        self._selector.register(channel.fileno(), selectors.EVENT_READ)

    def write(self, data: bytes) -> None:
        try:
            self._channel.sendall(data)
        except EOFError as error:  # paramiko's word for a connection that ended
            raise BrokenPipeError from error

    def end_input(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            self._channel.shutdown_write()

    def read(self, timeout: float | None) -> tuple[bytes, bytes] | None:
        channel = self._channel
        self._selector.select(timeout)
        ended = (
            channel.eof_received or channel.closed
        )  # asked before the data: what comes later is not missed
        out = channel.recv(CHUNK) if channel.recv_ready() else b""
        err = channel.recv_stderr(CHUNK) if channel.recv_stderr_ready() else b""
        return None if ended and not out and not err else (out, err)

    @property
    def ended_in_order(self) -> bool:
        """Whether the host has ended the output, and not the connection."""
        return bool(self._channel.eof_received)

    def status(self) -> int | None:
        return _status(self._channel)

    def close(self) -> None:
        self._selector.close()
        self._channel.close()


def _status(channel: paramiko.Channel) -> int | None:
    """The exit code of an ended session, None where there is none."""
    # It comes beside the end of the streams, before or after; not at all where the connection ended.
    channel.status_event.wait(5)
    return channel.exit_status if channel.exit_status >= 0 else None


def _signatures(name: str) -> tuple[str, ...]:
    """The algorithms that prove a key of that kind."""
    return ("rsa-sha2-512", "rsa-sha2-256", "ssh-rsa") if name == "ssh-rsa" else (name,)


def _unreachable(host: Host, error: BaseException) -> ConnectError:
    reason = str(getattr(error, "strerror", None) or error) or "it closed the connection"
    return ConnectError(
        f"cannot reach {host.alias} ({host.address}, port {host.port}): {reason}. Check the name, the port, "
        f"the network "
        "(a VPN?), and HostName, Port and ProxyJump in the SSH configuration."
    )
