#!/usr/bin/env python
"""What submitting to Slurm over SSH costs, in seconds and round trips, beside `ssh host sbatch` and NeMo-Run.

    .venv/bin/python scripts/bench/submit.py [--rounds 3] [--rtt 0 50 100] [--no-peers] [--json FILE]

It needs `scripts/slurm-rig` (root, Debian 12), whose network is slowed down to each round trip time in turn.
All cases take turns, so that the machine's speed and load cancel out of the ratios. Jobs begin in an hour:
what runs would take the time of this machine, which is the cluster as well. A case's round trips are
counted by the network itself: its seconds at a slow link less its seconds at a fast one, over the difference.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from launch import install_peers
from rich.console import Console
from rich.table import Table

import nemorun as run
from nemorun.executors.slurm.cluster import cluster_of
from nemorun.remote.connection import Connection

RIG = Path(__file__).parents[1] / "slurm-rig"
WORK = Path(__file__).parent / "work"
MANY = 100
#: `ssh host sbatch` is run this often and multiplied: a hundred at 100 ms take two minutes.
LOOPED = 5
LATER = "--begin=now+1hour"
SBATCH = f"sbatch -Q -o /dev/null --time=5 --mem=10M {LATER} --wrap true"


@dataclass
class Case:
    """One thing that is timed; `seconds` fills up for each round trip time."""

    who: str
    act: Callable[[], float]
    """Do it once; returns its seconds."""
    scale: float = 1.0
    seconds: dict[int, list[float]] = field(default_factory=dict)
    commands: int = 0
    """Commands that it sent over our connection."""
    failure: str = ""

    def median(self, rtt: int) -> float:
        return statistics.median(self.seconds[rtt]) * self.scale


class Nemorun:
    """Submissions and questions by the executor itself, on one connection."""

    def __init__(self, config: str) -> None:
        self.executor = run.SlurmExecutor(
            tunnel="login",
            transport="paramiko",
            ssh_config=config,
            job_dir="~/bench",
            time=5,
            mem="10M",
            sbatch_args=[LATER],
        )

    def handshake(self) -> float:
        """Connect anew."""
        connection = cluster_of(self.executor).connection
        connection.close()
        return timed(connection.connect)

    def submit(self, tasks: int, array: bool) -> Callable[[], float]:
        def act() -> float:
            self.executor.array = array
            experiment = run.Experiment("bench", executor=self.executor)
            for _ in range(tasks):
                experiment.add(run.Command(["true"]))
            seconds = timed(lambda: experiment.run(detach=True))
            self.record = experiment.record
            return seconds

        return act

    def status(self) -> float:
        """Ask for the tasks of the last submission, as a launcher does that has just been started."""
        refs = [self.record.ref(name) for name in self.record.statuses]
        return timed(lambda: self.executor.poll(refs))


def timed(act: Callable[[], Any]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def rig(*words: str) -> str:
    done = subprocess.run([RIG, *words], text=True, capture_output=True)
    if done.returncode:
        sys.exit(f"slurm-rig {' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def slurms_own_time() -> float:
    """A hundred times sbatch on the login host itself, nothing around it: timed by the shell that does it."""
    loop = f"cd; date +%s.%N; for i in $(seq {MANY}); do {SBATCH}; done; date +%s.%N"
    begun, ended = rig("exec", "login", "runuser", "-u", "alice", "--", "sh", "-c", loop).split()
    return float(ended) - float(begun)


def ssh_sbatch(config: str) -> float:
    command = ["ssh", "-F", config, "login", SBATCH]
    return timed(lambda: [subprocess.run(command, check=True) for _ in range(LOOPED)])


def peer_script(python: Path, tasks: int, facts: dict[str, Any]) -> Callable[[], float]:
    """A script of a peer's that prints the seconds of its submission, imports not counted."""
    # It calls ssh for rsync, and does not say where the rig's host keys stand.
    wrapper = Path("bin/ssh")
    wrapper.parent.mkdir(exist_ok=True)
    wrapper.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -o UserKnownHostsFile={facts["known_hosts"]} "$@"\n')
    wrapper.chmod(0o755)
    path = f"{wrapper.parent.absolute()}{os.pathsep}{os.environ['PATH']}"

    def act() -> float:
        env = {**os.environ, "RIG": json.dumps(facts), "TASKS": str(tasks), "PATH": path}
        done = subprocess.run(
            [python, WORK / "nemo_run_slurm.py"], env=env, text=True, capture_output=True, timeout=300
        )
        for line in done.stdout.splitlines():
            if line.startswith("seconds "):
                return float(line.split()[1])
        lines = (done.stderr + done.stdout).splitlines()
        errors = [line.strip() for line in lines if re.search(r"(Error|Exception):", line)]
        raise RuntimeError(errors[-1][:100] if errors else f"exit code {done.returncode}")

    return act


def cases(facts: dict[str, Any], peers: dict[str, Path]) -> list[Case]:
    ours = Nemorun(facts["ssh_config"])
    listed = [
        Case("handshake (every command pays it once)", ours.handshake),
        Case("nemorun, 1 task", ours.submit(1, array=False)),
        Case(f"nemorun, {MANY} tasks as one array", ours.submit(MANY, array=True)),
        Case(f"nemorun, {MANY} tasks as {MANY} jobs", ours.submit(MANY, array=False)),
        Case(f"nemorun, status of {MANY} jobs", ours.status),
        Case(f"sbatch {MANY} times, on the login host", slurms_own_time),
        Case("ssh login sbatch, 1 task", lambda: ssh_sbatch(facts["ssh_config"]), scale=1 / LOOPED),
        Case(f"ssh login sbatch, {MANY} tasks*", lambda: 0.0, scale=1),
    ]
    if "nemo_run" in peers:
        python = peers["nemo_run"] / "python"
        listed += [Case(f"NeMo-Run, {n} tasks", peer_script(python, n, facts)) for n in (1, 10, MANY)]
    return listed


def measure(listed: Sequence[Case], rtts: Sequence[int], rounds: int) -> None:
    for rtt in rtts:
        rig("wan", "--rtt", str(rtt))
        for number in range(rounds + 1):  # the first is not measured
            for case in listed:
                if case.failure or (case.who.startswith("NeMo") and number > 1):
                    continue
                try:
                    with mock.patch.object(
                        Connection, "run", autospec=True, side_effect=Connection.run
                    ) as sent:
                        seconds = case.act()
                    case.commands = sent.call_count
                except RuntimeError as error:
                    case.failure = str(error)
                    continue
                if number:
                    case.seconds.setdefault(rtt, []).append(seconds)
            rig("exec", "login", "runuser", "-u", "alice", "--", "scancel", "--me")
            print(f"{rtt} ms: round {number} of {rounds}", file=sys.stderr)


def rows(listed: Sequence[Case], rtts: Sequence[int]) -> list[dict[str, Any]]:
    found = []
    loop = next(case for case in listed if case.scale < 1)
    for case in listed:
        if case.who.endswith("*"):
            times = {rtt: loop.median(rtt) * MANY for rtt in rtts}
        elif case.failure:
            found.append({"who": case.who, "failure": case.failure})
            continue
        else:
            times = {rtt: case.median(rtt) for rtt in rtts}
        slow, fast = max(rtts), min(rtts)
        trips = (times[slow] - times[fast]) / (slow - fast) * 1000 if slow > fast else float("nan")
        row = {"who": case.who, "failure": "", "seconds": times, "round_trips": trips}
        found.append({**row, "commands": case.commands})
    return found


def show(found: Sequence[dict[str, Any]], rtts: Sequence[int]) -> None:
    table = Table(title="Submissions to Slurm over SSH: median seconds", title_justify="left")
    table.add_column("")
    for rtt in rtts:
        table.add_column(f"{rtt} ms", justify="right")
    table.add_column("round trips", justify="right")
    table.add_column("commands", justify="right")
    for row in found:
        if row["failure"]:
            table.add_row(row["who"], *["-"] * len(rtts), row["failure"])
        else:
            times = [f"{row['seconds'][rtt]:.3f}" for rtt in rtts]
            table.add_row(row["who"], *times, f"{row['round_trips']:.1f}", str(row["commands"] or ""))
    Console(width=140).print(table)
    print(f"* {LOOPED} were timed, and multiplied")
    load = ", ".join(f"{number:.1f}" for number in os.getloadavg())
    print(f"load average of this machine's {os.cpu_count()} cores over 1, 5 and 15 minutes: {load}")


def targets(found: Sequence[dict[str, Any]], rtts: Sequence[int]) -> bool:
    """Print what was promised, and whether it holds."""
    at = {row["who"]: row for row in found if not row["failure"]}
    many, one = at[f"nemorun, {MANY} tasks as {MANY} jobs"], at["nemorun, 1 task"]
    array, status = at[f"nemorun, {MANY} tasks as one array"], at[f"nemorun, status of {MANY} jobs"]
    own = at[f"sbatch {MANY} times, on the login host"]
    held = [(f"round trips for {MANY} tasks ≤ 6", many["round_trips"], many["round_trips"] <= 6)]
    held += [
        (f"round trips for {MANY} tasks as an array ≤ 6", array["round_trips"], array["round_trips"] <= 6)
    ]
    held += [(f"commands for the status of {MANY} jobs ≤ 1", status["commands"], status["commands"] <= 1)]
    for rtt in rtts:
        ratio = (many["seconds"][rtt] - own["seconds"][rtt]) / one["seconds"][rtt]
        held.append(
            (f"{MANY} tasks less Slurm's own time, against one task, at {rtt} ms ≤ 1.5", ratio, ratio <= 1.5)
        )
    for words, value, met in held:
        print(f"{words}: {value:.2f} {'met' if met else 'MISSED'}")
    return all(met for *_, met in held)


@contextmanager
def own_home() -> Any:
    """Records of the measurement go into a folder of their own."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NEMORUN_HOME"] = str(Path(folder) / "home")
        work = Path(folder) / "work"
        work.mkdir()
        os.chdir(work)
        yield


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rtt", type=int, nargs="+", default=[0, 50, 100], help="round trip times in ms")
    parser.add_argument("--peers", type=Path, default=Path("build/peers"), help="where peers are installed")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--json", type=Path, help="write every measured second to this file too")
    options = parser.parse_args()
    target = options.json and options.json.absolute()
    peers = {} if options.no_peers else install_peers(options.peers)[0]
    rig("up")
    facts = json.loads(rig("env", "--json"))
    try:
        with own_home():
            listed = cases(facts, peers)
            measure(listed, options.rtt, options.rounds)
    finally:
        rig("wan", "--rtt", "0")
    found = rows(listed, options.rtt)
    show(found, options.rtt)
    if target:
        target.write_text(
            json.dumps(
                [{**row, "raw": case.seconds} for row, case in zip(found, listed, strict=True)], indent=1
            )
        )
    return 0 if targets(found, options.rtt) else 1


if __name__ == "__main__":
    sys.exit(main())
