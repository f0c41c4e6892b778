"""The supervisor of a pod: starts its ranks when all pods are there, and again when another pod was lost.

    main() takes what `nemorun.worker` takes: TASK.yaml | --command -- program argument …

Standard library only: it runs in any image with Python 3.10.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from nemorun.executors.kubernetes.pod_links import Hub, Link, Spoke
from nemorun.executors.kubernetes.pod_ranks import Outcome, Ranks
from nemorun.executors.kubernetes.pod_settings import Settings, say
from nemorun.job import EXIT_RESUME

#: Bytes that Kubernetes keeps of a termination message.
_LONGEST_MESSAGE = 4096
#: Seconds beyond its grace period after which a pod that was told to stop is surely gone.
_LATE = 30.0


async def wait_for_predecessor(settings: Settings) -> None:
    """Hold this node's place in the run folder, once the pod that had it before has ended.

    Where the folder is on a volume, the pod before may still be saving its state: clusters start another one
    as soon as they tell it to stop. The lock goes with the pod however it ends. What one that was cut off
    with its machine may leave behind on a file server is not waited for longer than that pod could live.
    """
    path = settings.run_dir / f".pod-{settings.node}.lock"
    give_up, told = time.monotonic() + settings.grace_period + _LATE, False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)  # until this process ends
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > give_up:
                    say("the pod before this one holds its run folder still, and should be gone: goes on")
                    return
            if not told:
                say("waits for the pod before this one to end")
                told = True
            await asyncio.sleep(0.2)
    except OSError as error:  # a full disk, or a file system without locks: as it would be without
        say(f"cannot see whether the pod before this one has ended: {os.strerror(error.errno or errno.EIO)}")


def report(settings: Settings, attempt: int, outcome: Outcome) -> None:
    """Leave word for who asks the API server about this pod, in its termination message."""
    said: dict[str, Any] = {
        "attempt": attempt,
        "rank": outcome.rank,
        "exit_code": outcome.code,
        "error": None,
    }
    logs = settings.run_dir / "logs" / f"attempt-{attempt}"
    with contextlib.suppress(OSError, ValueError):
        said["error"] = json.loads((logs / f"rank-{outcome.rank}.failure").read_text())["error"][:1000]
    if outcome.code == 0 and settings.node == 0:
        with contextlib.suppress(OSError, ValueError):
            result = (settings.run_dir / "result.json").read_text()
            if len(result.encode()) < _LONGEST_MESSAGE - 200:
                said["result"] = json.loads(result)
    with contextlib.suppress(OSError):
        Path(os.environ.get("NEMORUN_REPORT", "/dev/termination-log")).write_text(json.dumps(said))


async def supervise(settings: Settings, words: list[str]) -> int:
    """Attempts until it is decided; returns the pod's exit code."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    if not await _unless(stop, wait_for_predecessor(settings)):
        return settings.exit_resume
    while True:
        link = (Link if settings.nodes == 1 else Spoke if settings.node else Hub)(settings)
        if settings.nodes > 1:
            say(f"pod {settings.node} of {settings.nodes} waits for the others")
        if not await _unless(stop, link.meet()):
            await link.close()
            return settings.exit_resume  # nothing was started, so nothing is lost
        say(f"attempt {link.attempt}")
        outcome = await Ranks(settings, link.attempt, words).run(link.over, stop)
        if not stop.is_set():
            await link.ended(outcome.code, outcome.at)
            await _unless(stop, link.over.wait())
        if stop.is_set():
            await link.leave(outcome.code, outcome.at)
        await link.close()
        if stop.is_set() or link.verdict in ("done", "mine"):
            report(settings, link.attempt, outcome)
            return settings.exit_resume if outcome.code == EXIT_RESUME else outcome.code
        say("starts again: another pod has ended or was lost" if settings.nodes > 1 else "starts again")


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, Any]) -> bool:
    """Await `work`; False where it was time to stop before."""
    tasks = [asyncio.ensure_future(work), asyncio.create_task(stop.wait())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    tasks[1].cancel()
    if not tasks[0].done():
        tasks[0].cancel()
        return False
    await tasks[0]  # its error, if it has one
    return True


def main() -> int:
    settings = Settings.of(os.environ)
    try:
        return asyncio.run(supervise(settings, sys.argv[1:]))
    except TimeoutError as error:
        say(f"gives up after {settings.start_timeout:.0f} s: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
