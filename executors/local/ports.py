"""A port of this machine that stays ours from its choice until a rank listens on it."""

from __future__ import annotations

import socket


def reserve_port() -> socket.socket:
    """A free TCP port, `getsockname()[1]`, reserved while the socket, or a copy in another process, is open.

    A port that was only looked up can be given to another process before a rank listens on it. This socket
    is bound but does not listen: the kernel gives its port to nobody by itself, and lets one that asks
    for it with SO_REUSEADDR, as torch's stores do, listen on it.
    """
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    return reserved
