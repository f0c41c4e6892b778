"""A person's terminal on a command in a pod: keys, output, the window's size, and the exit code."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from nemorun.errors import SubmitError
from nemorun.remote import terminal

if TYPE_CHECKING:
    from nemorun.executors.kubernetes.api import Api

#: Channels of the protocol v4.channel.k8s.io: the first byte of a message.
_STDIN, _STDOUT, _STDERR, _RESULT, _RESIZE = b"\0", 1, 2, 3, b"\4"
_CHUNK = 4096


def enter(api: Api, pod: str, container: str, command: list[str]) -> int:
    """Run the command on our terminal; its exit code. Raises SubmitError where that cannot be, or is lost."""
    tty = terminal.require()
    socket = _connect(api, pod, container, command)
    try:
        with terminal.lent(tty):
            result = _carry(socket, tty)
    finally:
        socket.close()
    if result is None:
        raise SubmitError(f"the connection to pod {pod} was lost")
    return _code(result, pod)


def _connect(api: Api, pod: str, container: str, command: list[str]) -> Any:
    from kubernetes.stream.ws_client import create_websocket
    from websocket import WebSocketException

    options = [("container", container), *(("command", word) for word in command)]
    options += [(name, "true") for name in ("stdin", "stdout", "tty")]
    url = f"{api.server}{api.path('Pod', pod)}/exec?{urlencode(options)}".replace("http", "ws", 1)
    headers = {name.lower(): value for name, value in api.headers().items()}
    headers["sec-websocket-protocol"] = "v4.channel.k8s.io"
    try:
        return create_websocket(api.configuration, url, headers)
    except (WebSocketException, OSError) as error:
        raise SubmitError(f"a command cannot be started in pod {pod}: {error}") from None


def _carry(socket: Any, tty: int) -> bytes | None:
    """Until the command has ended; its result, or None where the connection was lost."""
    from websocket import ABNF, WebSocketException

    resized, wake = os.pipe()
    os.set_blocking(wake, False)

    def on_resize(number: int, _: FrameType | None) -> None:
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes us anyway
            os.write(wake, b"\0")

    on_resize(0, None)
    sys.stdout.flush()
    with (
        terminal.handled(signal.SIGWINCH, on_resize),
        terminal.handled(signal.SIGHUP, _leave),
        terminal.handled(signal.SIGTERM, _leave),
        contextlib.suppress(WebSocketException, OSError),
    ):
        terminal.make_raw(tty)
        sources = [socket.sock, resized, tty]
        while True:
            # what TLS has decrypted already, select does not see
            pending = getattr(socket.sock, "pending", lambda: 0)()
            ready = [socket.sock] if pending else select.select(sources, [], [])[0]
            if socket.sock in ready:
                kind, data = socket.recv_data()
                if kind == ABNF.OPCODE_CLOSE:
                    return None
                if data[:1] and data[0] == _RESULT:
                    return bytes(data[1:])
                if data[:1] and data[0] in (_STDOUT, _STDERR):
                    _write(sys.stdout.fileno(), data[1:])
            if resized in ready:
                os.read(resized, _CHUNK)
                columns, rows = terminal.size(tty)
                socket.send_binary(_RESIZE + json.dumps({"Width": columns, "Height": rows}).encode())
            if tty in ready:
                keys = os.read(tty, _CHUNK)
                if not keys:
                    return None  # the terminal is gone
                socket.send_binary(_STDIN + keys)
    return None


def _leave(number: int, _: FrameType | None) -> None:
    """The window was closed: what was made for this session is to be deleted on the way out."""
    raise SystemExit(128 + number)


def _code(result: bytes, pod: str) -> int:
    """Of the Status that the server sends at the end."""
    said = json.loads(result)
    if said.get("status") == "Success":
        return 0
    for cause in (said.get("details") or {}).get("causes") or ():
        if cause.get("reason") == "ExitCode":
            return int(cause["message"])
    raise SubmitError(f"the command in pod {pod}: {said.get('message', 'it was ended')}")


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
