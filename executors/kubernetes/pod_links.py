"""The links between the pods of a task: all start together, and know at once when one is lost.

Node 0 is the hub, and the others keep a connection to it. Where a rank fails, the pod that was first ends
with that, and the others are told to start again: a failure costs one retry, whatever the number of pods.
Standard library only: it runs in any image.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from nemorun.executors.kubernetes.pod_settings import Settings
from nemorun.job import EXIT_RESUME

#: Seconds from a rank's failure to the verdict who was first: news of the others' may be under way.
SETTLE = 1.0


@dataclass
class Link:
    """What connects this pod with the others, in one attempt. By itself: of a pod that has no others."""

    settings: Settings
    attempt: int = 1
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when there is a verdict."""
    verdict: str = ""
    """`done`: all ranks of all pods have ended well; `mine`: end with what you have; `again`."""

    def judge(self, verdict: str) -> None:
        if not self.over.is_set():
            self.verdict = verdict
            self.over.set()

    async def meet(self) -> None:
        """Return when all pods are there."""
        self.attempt = self.next_attempt()

    def next_attempt(self) -> int:
        logs = self.settings.run_dir / "logs"
        seen = (path.name.removeprefix("attempt-") for path in logs.glob("attempt-*"))
        return max((int(number) for number in seen if number.isdigit()), default=0) + 1

    async def ended(self, code: int, at: float) -> None:
        """Tell how the ranks of this pod have ended, and when."""
        self.judge({0: "done", EXIT_RESUME: "again"}.get(code, "mine"))

    async def leave(self, code: int, at: float) -> None:
        """Tell that this pod must go; where its ranks have saved their state, the others' are about to."""

    async def close(self) -> None:
        pass


@dataclass
class Hub(Link):
    """Node 0's end of all links."""

    peers: dict[int, asyncio.StreamWriter] = field(default_factory=dict)
    codes: dict[int, int] = field(default_factory=dict)
    failures: dict[int, float] = field(default_factory=dict)
    complete: asyncio.Event = field(default_factory=asyncio.Event)
    settling: asyncio.Task[None] | None = None
    late: asyncio.TimerHandle | None = None

    async def meet(self) -> None:
        server = await asyncio.start_server(self._peer, port=self.settings.port - 1, reuse_address=True)
        try:
            await self._all_there()
        finally:
            server.close()  # who comes later waits for the next attempt
        self.attempt = self.next_attempt()
        self._tell(self.peers, f"go {self.attempt}")

    async def _all_there(self) -> None:
        try:
            # ranks here use the name as well
            await asyncio.wait_for(_resolved(self.settings.host), self.settings.start_timeout)
            await asyncio.wait_for(self.complete.wait(), self.settings.start_timeout)
        except asyncio.TimeoutError:
            missing = [str(node) for node in range(1, self.settings.nodes) if node not in self.peers]
            raise TimeoutError(
                f"pods {', '.join(missing)} of {self.settings.nodes} are not there"
                if missing
                else f"the name {self.settings.host} is not known"
            ) from None

    async def _peer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        words = (await _line(reader)).split()
        if len(words) != 3 or words[0] != "join" or words[2] != self.settings.token:
            writer.close()
            return
        node = int(words[1])
        _keep_alive(writer)
        if earlier := self.peers.pop(node, None):  # its pod is gone without a word
            earlier.close()
        self.peers[node] = writer
        if len(self.peers) == self.settings.nodes - 1:
            self.complete.set()
        while line := await _line(reader):
            _, code, age = line.split()
            await self._ended(node, int(code), time.monotonic() - float(age))
        if self.peers.get(node) is writer:
            del self.peers[node]
            if self.codes.get(node) == EXIT_RESUME:  # the others have until then to save theirs
                self.late = asyncio.get_running_loop().call_later(self.settings.grace_period, self._restart)
            elif self.complete.is_set():
                self._restart()
        writer.close()

    async def ended(self, code: int, at: float) -> None:
        await self._ended(0, code, at)

    async def leave(self, code: int, at: float) -> None:
        if code == EXIT_RESUME:
            self._tell(self.peers, "leaving")

    async def _ended(self, node: int, code: int, at: float) -> None:
        self.codes[node] = code
        if code not in (0, EXIT_RESUME):
            self.failures[node] = at
            self.settling = self.settling or asyncio.create_task(self._settle())
        elif len(self.codes) == self.settings.nodes and not self.failures:
            if any(self.codes.values()):
                self._restart()
            else:
                self._tell(self.peers, "done")
                self.judge("done")

    async def _settle(self) -> None:
        await asyncio.sleep(SETTLE)
        first = min(self.failures, key=lambda node: self.failures[node])
        if first == 0:
            self.judge("mine")
        else:
            self._tell([first], "mine")
        self._restart()

    def _restart(self) -> None:
        self._tell(self.peers, "again")
        self.judge("again")

    def _tell(self, nodes: Iterable[int], text: str) -> None:
        for node in nodes:
            if node in self.peers:
                self.peers[node].write(f"{text}\n".encode())

    async def close(self) -> None:
        for writer in self.peers.values():
            with contextlib.suppress(OSError):
                await writer.drain()
            writer.close()
        for pending in (self.settling, self.late):
            if pending:
                pending.cancel()


@dataclass
class Spoke(Link):
    """Another node's end of its link to the hub."""

    writer: asyncio.StreamWriter | None = None
    listening: asyncio.Task[None] | None = None
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the ranks of this pod have ended."""

    async def meet(self) -> None:
        try:
            await asyncio.wait_for(self._join(), self.settings.start_timeout)
        except asyncio.TimeoutError:
            raise TimeoutError(f"the pod {self.settings.host} is not there") from None

    async def _join(self) -> None:
        while True:
            try:
                await _resolved(self.settings.host)
                reader, writer = await asyncio.open_connection(self.settings.host, self.settings.port - 1)
            except OSError:
                await asyncio.sleep(0.5)
                continue
            _keep_alive(writer)
            writer.write(f"join {self.settings.node} {self.settings.token}\n".encode())
            words = (await _line(reader)).split()
            if words[:1] == ["go"]:
                self.attempt, self.writer = int(words[1]), writer
                self.listening = asyncio.create_task(self._listen(reader))
                return
            writer.close()  # it went away meanwhile
            await asyncio.sleep(0.5)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        word = await _line(reader) or "again"
        if word == "leaving":
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.finished.wait(), self.settings.grace_period)
            word = "again"
        self.judge(word)

    async def leave(self, code: int, at: float) -> None:
        if code == EXIT_RESUME:
            await self.ended(code, at)

    async def ended(self, code: int, at: float) -> None:
        self.finished.set()
        if self.writer:
            self.writer.write(f"ended {code} {time.monotonic() - at:.3f}\n".encode())

    async def close(self) -> None:
        if self.listening:
            self.listening.cancel()
        if self.writer:
            self.writer.close()


async def _line(reader: asyncio.StreamReader) -> str:
    """The next line, or nothing where the other end is gone."""
    try:
        return (await reader.readline()).decode().strip()
    except (OSError, ValueError):
        return ""


async def _resolved(host: str) -> None:
    """Return when the name has an address: a pod's gets one some time after it has started."""
    while True:
        try:
            await asyncio.get_running_loop().getaddrinfo(host, None)
            return
        except socket.gaierror:
            await asyncio.sleep(0.5)


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    """Notice within half a minute that the other end's machine is gone."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
