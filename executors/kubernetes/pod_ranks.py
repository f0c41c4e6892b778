"""The ranks of one pod: started with what torchrun gives to each, ended together, their output told apart.

Standard library only: it runs in any image.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from nemorun.executors.kubernetes.pod_settings import Settings, write
from nemorun.job import EXIT_RESUME

#: Seconds that ranks have to end when there is nothing to save any more: others have failed.
LAST_WORDS = 10.0
_LONGEST_LINE = 1 << 16


@dataclass(frozen=True)
class Outcome:
    """How a rank ended, and when."""

    rank: int
    code: int
    """As a shell says it: 128 + n for signal n."""
    at: float

    @property
    def failed(self) -> bool:
        return self.code not in (0, EXIT_RESUME)

    def weight(self) -> tuple[bool, bool, float]:
        """What says most about all ranks comes first: the first failure, else who asks to be resumed."""
        return (not self.failed, self.code == 0, self.at if self.failed else self.rank)


class Log:
    """What a rank writes, line by line: to its file, and with its number in front to the pod's log."""

    def __init__(self, rank: int, file: Path) -> None:
        self.prefix = f"[rank {rank}] ".encode()
        self.rest = b""
        self.closed = asyncio.Event()
        self.file: int | None = None
        with contextlib.suppress(OSError):  # a full disk: the pod's log is still there
            self.file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self.source, self.write_end = os.pipe()
        asyncio.get_running_loop().add_reader(self.source, self._read)

    def _read(self) -> None:
        text = os.read(self.source, _LONGEST_LINE)
        *lines, self.rest = (self.rest + text).split(b"\n")
        if self.rest and (not text or len(self.rest) >= _LONGEST_LINE):
            lines, self.rest = [*lines, self.rest], b""
        if lines:
            write(b"".join(self.prefix + line + b"\n" for line in lines))
        if self.file is not None:
            with contextlib.suppress(OSError):
                os.write(self.file, text)
        if not text:
            asyncio.get_running_loop().remove_reader(self.source)
            os.close(self.source)
            if self.file is not None:
                os.close(self.file)
            self.closed.set()


class Ranks:
    """The ranks of this pod, in one attempt."""

    def __init__(self, settings: Settings, attempt: int, words: list[str]) -> None:
        self.settings, self.attempt, self.words = settings, attempt, words
        self.logs = settings.run_dir / "logs" / f"attempt-{attempt}"
        self.processes: dict[int, asyncio.subprocess.Process] = {}
        self.failed = asyncio.Event()

    async def run(self, over: asyncio.Event, stop: asyncio.Event) -> Outcome:
        """Start them, and return when all have ended. Where one fails, or it is `over`, the others must."""
        with contextlib.suppress(OSError):
            self.logs.mkdir(parents=True, exist_ok=True)
        logs = [await self._start(local) for local in range(self.settings.ranks)]
        watching = [
            asyncio.create_task(self._pass_on(stop)),
            asyncio.create_task(self._end_all(over)),
            asyncio.create_task(self._end_all(self.failed)),
        ]
        outcomes = await asyncio.gather(*map(self._ended, self.processes))
        for task in watching:
            task.cancel()
        self._signal(signal.SIGKILL)  # what they have left behind would hold our pipes
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.gather(*(log.closed.wait() for log in logs)), 5)
        return min(outcomes, key=Outcome.weight)

    async def _start(self, local: int) -> Log:
        rank = self.settings.node * self.settings.ranks + local
        log = Log(rank, self.logs / f"rank-{rank}.log")
        self.processes[rank] = await asyncio.create_subprocess_exec(
            sys.executable,
            self.settings.library,
            *self.words,
            env={**os.environ, **self._environment(rank, local)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log.write_end,
            stderr=log.write_end,
            start_new_session=True,
        )
        os.close(log.write_end)
        return log

    def _environment(self, rank: int, local: int) -> dict[str, str]:
        """What torchrun gives to a rank."""
        env = {"NEMORUN_ATTEMPT": str(self.attempt)}
        if not self.settings.distributed:
            return env
        nodes, ranks, node = self.settings.nodes, self.settings.ranks, self.settings.node
        share = max(1, len(os.sched_getaffinity(0)) // ranks)
        return env | {
            "MASTER_ADDR": self.settings.host,
            "MASTER_PORT": str(self.settings.port),
            "RANK": str(rank),
            "LOCAL_RANK": str(local),
            "WORLD_SIZE": str(nodes * ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "NODE_RANK": str(node),
            "GROUP_RANK": str(node),
            "GROUP_WORLD_SIZE": str(nodes),
            "TORCHELASTIC_RUN_ID": self.settings.token,
            "TORCHELASTIC_RESTART_COUNT": str(self.attempt - 1),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(share)),
        }

    async def _ended(self, rank: int) -> Outcome:
        code = await self.processes[rank].wait()
        outcome = Outcome(rank, code if code >= 0 else 128 - code, time.monotonic())
        if outcome.failed:
            self.failed.set()
        return outcome

    async def _pass_on(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._signal(signal.SIGTERM)

    async def _end_all(self, when: asyncio.Event) -> None:
        await when.wait()
        self._signal(signal.SIGTERM)
        await asyncio.sleep(LAST_WORDS)
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
