"""A reserved port is kept for the rank that will listen on it."""

from __future__ import annotations

import socket

import pytest
from torch.distributed import TCPStore

from nemorun.executors.local.ports import reserve_port
from nemorun.job import Reason, Resources

from .conftest import Bench

# one rank only: the first to fail has the other ended, who may not have said anything by then
_TAKE = """
import os, socket
if os.environ["RANK"] == "0":
    socket.socket().bind(("127.0.0.1", int(os.environ["MASTER_PORT"])))
"""


def test_a_reserved_port_is_refused_to_others_until_it_is_given_back() -> None:
    with reserve_port() as reserved:
        port = reserved.getsockname()[1]
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))


def test_a_store_gets_the_port_that_is_reserved_for_it() -> None:
    with reserve_port() as reserved:
        port = reserved.getsockname()[1]
        for libuv in (True, False):
            store = TCPStore("127.0.0.1", port, world_size=1, is_master=True, use_libuv=libuv)
            store.set("a", "b")
            assert store.get("a") == b"b"
            del store


def test_the_rendezvous_of_ranks_is_reserved_as_long_as_they_live(bench: Bench) -> None:
    status = bench.run(_TAKE, resources=Resources(ntasks_per_node=2))
    assert status.reason == Reason.EXIT_CODE and "already in use" in bench.log(rank=0)
