#!/usr/bin/env python
"""What a start costs: nemorun's commands and local tasks, a plain Typer app, a bare subprocess, and peers.

    .venv/bin/python scripts/bench/launch.py [--rounds 9] [--peers DIR | --no-peers] [--json FILE]

All cases take turns in one run on one machine, so that its speed and load cancel out of the ratios; the table
shows medians of wall-clock seconds of whole processes. The work is done in a small git repository. Peers are
installed once, each in a virtual environment of its own under DIR; the table says why one could not be.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

WORK = Path(__file__).parent / "work"
PEER_ROUNDS = 3
TASKS = 20  # as many as the files nemorun_many.py and those of the peers start
HELP, DRY_RUN, ONE, MANY = GROUPS = ("help", "dry run", "one task", f"{TASKS} tasks")

#: Peer -> (module, requirements). Newer leptonai have lost a module that nemo_run imports.
PEERS = {
    "nemo_run": ("nemo_run", ["nemo_run==0.11.1", "leptonai<0.28"]),
    "torchx": ("torchx", ["torchx==0.7.0"]),
    "submitit": ("submitit", ["submitit==1.5.4"]),
}


@dataclass
class Case:
    """One command line of one contestant; `seconds` fills up, or `failure` says why there are none."""

    group: str
    who: str
    argv: Sequence[str]
    peer: bool = False
    baseline: bool = False
    target: tuple[str, float] | None = None
    """(what, the most that is allowed): "seconds", or "ratio" or "extra" against the group's baseline."""
    seconds: list[float] = field(default_factory=list)
    failure: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def cases(peers: dict[str, Path]) -> list[Case]:
    python, nemorun = sys.executable, str(Path(sys.executable).with_name("nemorun"))
    typer_help = [python, "typer_app.py", "--help"]
    dry_run = [nemorun, "run", "tiny_llama_pretrain", "--dry-run"]
    listed = [
        Case(HELP, "a minimal Typer app", typer_help, baseline=True),
        Case(HELP, "nemorun --help", [nemorun, "--help"], target=("ratio", 1.4)),
        Case(DRY_RUN, "a minimal Typer app's --help", typer_help, baseline=True),
        Case(DRY_RUN, "nemorun run … --dry-run", dry_run, target=("ratio", 3.0)),
        Case(ONE, "bare subprocess", [python, "work.py"], baseline=True),
        Case(ONE, "nemorun", [python, "nemorun_one.py"], target=("extra", 0.3)),
        Case(MANY, "nemorun", [python, "nemorun_many.py"], target=("seconds", 2.0)),
    ]

    def peer(name: str, group: str, who: str, *argv: str) -> None:
        if name in peers:
            listed.append(Case(group, who, [str(peers[name] / argv[0]), *argv[1:]], peer=True))

    peer("nemo_run", HELP, "nemo_run: nemorun --help", "nemorun", "--help")
    peer("nemo_run", DRY_RUN, "nemo_run: run.run(dryrun=True)", "python", "nemo_run_dry.py")
    peer("nemo_run", ONE, "nemo_run", "python", "nemo_run_one.py")
    peer("nemo_run", MANY, "nemo_run", "python", "nemo_run_many.py")
    torchx_run = ("torchx", "run", "-s", "local_cwd")
    in_shell = ("utils.sh", "python", "work.py")
    peer("torchx", HELP, "torchx --help", "torchx", "--help")
    peer("torchx", DRY_RUN, "torchx run --dryrun", *torchx_run, "--dryrun", *in_shell)
    peer("torchx", ONE, "torchx run --wait", *torchx_run, "--wait", *in_shell)
    replicas = ("utils.sh", "--num_replicas", str(TASKS), "python", "work.py")
    peer("torchx", MANY, f"torchx, {TASKS} replicas", *torchx_run, "--wait", *replicas)
    peer("submitit", HELP, "import submitit (no CLI)", "python", "-c", "import submitit")
    peer("submitit", ONE, "submitit LocalExecutor", "python", "submitit_one.py")
    peer("submitit", MANY, "submitit LocalExecutor", "python", "submitit_many.py")
    return listed


def install_peers(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Peer -> its bin folder, and peer -> why it is not there."""
    found, missing = {}, {}
    for name, (module, requirements) in PEERS.items():
        binaries = folder.resolve() / name / "bin"
        looks = [str(binaries / "python"), "-c", f"import {module}"]
        if not (binaries / "python").exists() or subprocess.run(looks, capture_output=True).returncode:
            print(f"installing {name} into {folder / name}", file=sys.stderr)
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder / name)], check=True)
            pip = [str(binaries / "python"), "-m", "pip", "install", "--quiet", *requirements]
            subprocess.run(pip, capture_output=True)
        done = subprocess.run(looks, capture_output=True, text=True)
        if done.returncode:
            missing[name] = f"not installable here: {_last_line(done.stderr)}"
        else:
            found[name] = binaries
    return found, missing


def measure(listed: Sequence[Case], rounds: int, folder: Path) -> None:
    """Run every case once unmeasured (byte code, file cache), then in turn for the rounds."""
    for number in range(rounds + 1):
        for case in listed:
            if not case.failure and number <= (PEER_ROUNDS if case.peer else rounds):
                _run(case, folder, keep=number > 0)
        print(f"round {number} of {rounds}", file=sys.stderr)


def _run(case: Case, folder: Path, keep: bool) -> None:
    path = f"{Path(case.argv[0]).parent}{os.pathsep}{os.environ['PATH']}"
    homes = {name: str(folder.parent / "home") for name in ("HOME", "NEMORUN_HOME")}
    env = {**os.environ, **homes, "PATH": path, "PYTHONPATH": str(folder)}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has byte code, and so has everybody here
    with tempfile.TemporaryFile("w+") as output:
        start = time.perf_counter()
        done = subprocess.run(case.argv, cwd=folder, env=env, stdout=output, stderr=subprocess.STDOUT)
        seconds = time.perf_counter() - start
        if done.returncode:
            output.seek(0)
            case.failure = f"exit code {done.returncode}: {_last_line(output.read())}"
        elif keep:
            case.seconds.append(seconds)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:100] if lines else "no output"


def make_workspace(folder: Path) -> None:
    shutil.copytree(WORK, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / ".gitignore").write_text("logs/\n__pycache__/\n")
    identity = ["-c", "user.name=bench", "-c", "user.email=bench@example.org"]
    for arguments in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "Work"]):
        subprocess.run(["git", *arguments], cwd=folder, check=True)


def rows(listed: Sequence[Case], missing: dict[str, str]) -> list[dict[str, Any]]:
    """One flat record a case, with what it is against its group's baseline."""
    baselines = {case.group: case.median for case in listed if case.baseline and case.seconds}
    found: list[dict[str, Any]] = []
    for case in sorted(listed, key=lambda case: GROUPS.index(case.group)):
        row: dict[str, Any] = {"group": case.group, "who": case.who, "failure": case.failure}
        if not case.failure:
            row |= {"median": case.median, "low": min(case.seconds), "high": max(case.seconds)}
            row["seconds"] = case.seconds
            if base := baselines.get(case.group):
                row |= {"ratio": case.median / base, "extra": case.median - base}
            if case.target:
                what, most = case.target
                value = case.median if what == "seconds" else row[what]
                row |= {"target": f"{what} ≤ {most:g}", "met": value <= most}
        found.append(row)
    return found + [{"group": "peers", "who": name, "failure": reason} for name, reason in missing.items()]


def show(records: Sequence[dict[str, Any]], title: str) -> None:
    table = Table(title=title, title_justify="left")
    for column in ("", "who", "median s", "low to high", "ratio", "extra s", "target", ""):
        table.add_column(column, justify="left" if column in ("", "who", "target") else "right")
    for group, members in itertools.groupby(records, key=lambda row: row["group"]):
        table.add_section()
        for number, row in enumerate(members):
            names = ("" if number else group, row["who"])
            if row["failure"]:
                table.add_row(*names, "-", "", "", "", "", row["failure"])
                continue
            spread = f"{row['low']:.2f} to {row['high']:.2f}"
            ratio, extra = (f"{row[name]:.2f}" if name in row else "" for name in ("ratio", "extra"))
            met = {True: "met", False: "MISSED", None: ""}[row.get("met")]
            table.add_row(*names, f"{row['median']:.3f}", spread, ratio, extra, row.get("target", ""), met)
    Console(width=140).print(table)


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--rounds", type=int, default=9, help=f"of nemorun; peers run {PEER_ROUNDS} at most")
    parser.add_argument("--peers", type=Path, default=Path("build/peers"), help="where peers are installed")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--json", type=Path, help="write every measured second to this file too")
    options = parser.parse_args()

    peers, missing = ({}, {}) if options.no_peers else install_peers(options.peers)
    listed = cases(peers)
    before = os.getloadavg()[0]
    scratch = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        make_workspace(scratch / "workspace")
        measure(listed, options.rounds, scratch / "workspace")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    load = f"load {before:.1f} before, {os.getloadavg()[0]:.1f} after"
    title = f"Python {platform.python_version()}, {platform.system()}, {os.cpu_count()} CPUs, {load}"
    records = rows(listed, missing)
    show(records, title)
    if options.json:
        options.json.write_text(json.dumps({"machine": title, "rows": records}, indent=1) + "\n")
    return int(any(case.failure and not case.peer for case in listed))


if __name__ == "__main__":
    sys.exit(main())
