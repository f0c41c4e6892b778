"""Launcher, supervisor and ranks are killed at random: no record is lost, nothing starts twice, no orphan."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from nemorun.job import JobState, JobStatus, Reason, Resources

from .conftest import Bench, wait_until

ROUNDS = 100

#: Each start and each end of a rank is a line; every rank leaves a daemon behind.
RANK = (
    "import os, subprocess, sys, time\n"
    "def note(name):\n"
    "    line = ' '.join(os.environ.get(n, '0') for n in ('NEMORUN_TASK', 'NEMORUN_ATTEMPT', 'RANK'))\n"
    "    fd = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
    "    os.write(fd, (line + '\\n').encode())\n"
    "note('starts')\n"
    "subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
    "time.sleep({seconds})\n"
    "note('ends')\n"
)
#: The launcher; it reads the jobs that it is to submit from their repr.
LAUNCH = (
    "import sys\nfrom pathlib import Path\n"
    "from nemorun.executors.base import Rendered\nfrom nemorun.executors.local import LocalExecutor\n"
    "from nemorun.job import JobSpec, Resources\n"
    "jobs = eval(sys.argv[1])\n"
    "executor = LocalExecutor(grace_period=0.2, backoff=0.01)\n"
    "executor.submit(executor.render(jobs), {})\n"
)


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def attack(bench: Bench, rng: random.Random, launcher: subprocess.Popen[bytes]) -> None:
    """Kill one to three of launcher, supervisor, its guard and the ranks, each a little after some stage.

    Now and then the supervisor gets a signal that asks it to end, or that a closing terminal would send.
    """
    local = bench.path("local")
    stages: list[Callable[[], object]] = [
        lambda: True,
        (local / "supervisor.lock").exists,
        (local / "plan.json").exists,
        lambda: supervisors(bench),
        lambda: bench.events("submitted"),
        lambda: bench.events("starting"),
        lambda: bench.events("started"),
        bench.path("starts").exists,
        bench.path("ends").exists,
    ]
    for _ in range(rng.randint(1, 3)):
        reached, victim = (
            rng.choice(stages),
            rng.choice(["launcher", "supervisor", "both", "asked", "rank", "rank"]),
        )
        give_up = time.monotonic() + 1.0  # a victim of before may have been needed to get there
        while not reached() and time.monotonic() < give_up:
            time.sleep(0.001)
        time.sleep(rng.choice([0.0, rng.uniform(0, 0.02), rng.uniform(0, 0.2)]))
        if victim == "launcher":
            launcher.kill()
        elif victim == "rank":
            if processes := bench.processes():
                kill(rng.choice(processes))
        elif victim == "asked":
            for pid in supervisors(bench)[:1]:
                kill(pid, rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGHUP]))
        else:
            for pid in supervisors(bench)[: 2 if victim == "both" else 1]:
                kill(pid)


def supervisors(bench: Bench) -> list[int]:
    """The supervisor, and its guard."""
    mark = str(bench.folder / "local").encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"nemorun.executors.local.supervisor" in words and mark in words:
                    found.append(int(entry.name))
    return sorted(found)


def one_round(bench: Bench, seed: int) -> tuple[int, dict[str, JobStatus]]:
    rng = random.Random(seed)
    seconds = rng.choice([0, 0.05, 0.3])
    bench.add("a", python=RANK.replace("{seconds}", str(seconds)), resources=Resources(1, 2), retries=1)
    bench.add("b", python=RANK.replace("{seconds}", "0"), dependencies=("a",))
    bench.add("c", python=RANK.replace("{seconds}", str(seconds)))
    words = [sys.executable, "-c", LAUNCH, repr(bench.jobs)]
    with subprocess.Popen(words, cwd=bench.folder, stderr=subprocess.DEVNULL) as launcher:
        attack(bench, rng, launcher)
        if rng.random() < 0.3:  # someone else submits the same, or looks, meanwhile
            subprocess.run(words, cwd=bench.folder, stderr=subprocess.DEVNULL, check=False)
        if rng.random() < 0.3:
            bench.executor.poll(bench.refs)
        launcher.wait()
    return seed, bench.wait()


def check(bench: Bench, statuses: dict[str, JobStatus]) -> None:
    # No lost record: every task has ended, for good, and what the record says is what happened.
    wait_until(lambda: bench.processes() == [] and supervisors(bench) == [])  # no orphan
    assert bench.wait() == statuses
    starts, ends = lines(bench.path("starts")), lines(bench.path("ends"))
    ranks = {"a": 2, "b": 1, "c": 1}
    for name, status in statuses.items():
        assert len([line for line in bench.events("ended") if line["task"] == name]) <= 1
        started = {int(line.split()[1]) for line in starts if line.startswith(f"{name} ")}
        assert started <= set(range(1, status.attempt + 1))
        if status.state == JobState.SUCCEEDED:
            ended = [line for line in ends if line.startswith(f"{name} {status.attempt} ")]
            assert len(ended) == ranks[name]
        if status.reason in (Reason.NOT_SUBMITTED, Reason.DEPENDENCY_FAILED):
            assert not started
    if statuses["a"].state != JobState.SUCCEEDED:
        assert not any(line.startswith("b ") for line in starts)
    # No double start: each attempt of each rank has started at most once.
    assert len(starts) == len(set(starts))
    assert statuses["a"].attempt <= 2 and statuses["b"].attempt <= 1 and statuses["c"].attempt <= 1


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for orphans in Linux's /proc")
def test_kills_at_random_points(make_bench: Callable[..., Bench]) -> None:
    first = int(os.environ.get("CRASH_SEED", time.time_ns() % 1_000_000))
    print(f"CRASH_SEED={first}")
    # The kills are to meet it at different points, of which some are rare on a busy machine.
    missing = {Reason.NONE, Reason.LOST, Reason.SIGNAL, Reason.NOT_SUBMITTED}
    for begin in range(first, first + 5 * ROUNDS, ROUNDS):
        seeds = range(begin, begin + ROUNDS)
        benches = {seed: make_bench(f"round{seed}", grace_period=0.2) for seed in seeds}
        with ThreadPoolExecutor(4) as pool:
            for seed, statuses in pool.map(one_round, benches.values(), benches):
                print(f"seed {seed}")
                check(benches[seed], statuses)
                missing -= {status.reason for status in statuses.values()}
        if not missing:
            break
    assert not missing
