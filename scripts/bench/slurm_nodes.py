#!/usr/bin/env python
"""One job on 128 nodes with 1,024 GPUs: what the launcher needs for it, in seconds and memory.

    .venv/bin/python scripts/bench/slurm_nodes.py [--nodes 128] [--ranks-per-node 8] [--json FILE]

It needs `scripts/slurm-rig` (root, Debian 12), and takes down a rig that is up with fewer nodes. Every rank
prints one line, which is read here; the bare `srun` of the same width, on the login host, stands beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nemorun as run

RIG = Path(__file__).parents[1] / "slurm-rig"


def rig(*words: str) -> str:
    done = subprocess.run([RIG, *words], text=True, capture_output=True)
    if done.returncode:
        sys.exit(f"slurm-rig {' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def bring_up(nodes: int) -> str:
    """The path of the SSH configuration of a rig with that many nodes."""
    if subprocess.run([RIG, "status"], capture_output=True).returncode == 0:
        if len(json.loads(rig("env", "--json"))["nodes"]) >= nodes:
            return str(json.loads(rig("env", "--json"))["ssh_config"])
        rig("down")
    rig("up", "--nodes", str(nodes))
    return str(json.loads(rig("env", "--json"))["ssh_config"])


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--nodes", type=int, default=128)
    parser.add_argument("--ranks-per-node", type=int, default=8)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    target = options.json and options.json.absolute()
    config = bring_up(options.nodes)
    ranks = options.nodes * options.ranks_per_node
    bare = f"srun -Q -N {options.nodes} -n {ranks} --gpus-per-node=8 --mem=1G true"
    figures: dict[str, float] = {}
    last = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal last
        figures[name] = time.perf_counter() - last
        last = time.perf_counter()

    rig("exec", "login", "runuser", "-u", "alice", "--", "sh", "-c", f"cd; {bare}")
    lap("a bare srun of that width, on the login host")
    figures["megabytes before"] = megabytes()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NEMORUN_HOME"] = f"{folder}/home"
        os.chdir(folder)
        executor = run.SlurmExecutor(
            tunnel="login",
            ssh_config=config,
            job_dir="~/bench",
            nodes=options.nodes,
            ntasks_per_node=options.ranks_per_node,
            gpus_per_node=8,
            time=30,
            mem="16G",
        )
        last = time.perf_counter()
        experiment = run.Experiment("wide", executor=executor)
        experiment.add(run.Command(["sh", "-c", "echo rank $RANK of $WORLD_SIZE"]))
        text = experiment.dry_run()
        lap("rendered")
        assert f"--nodes={options.nodes}" in text
        experiment.run(detach=True)
        lap("recorded, connected and submitted")
        experiment.record.wait()
        lap("ran, until its end was known")
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            experiment.logs()
        lap("output of all ranks read")
        experiment.record.refresh()
    seen = {line.partition("] ")[2] for line in output.getvalue().splitlines()}
    figures["ranks seen"] = len(seen & {f"rank {rank} of {ranks}" for rank in range(ranks)})
    figures["megabytes at most"] = megabytes()
    print(f"{options.nodes} nodes, {options.nodes * 8} GPUs, {ranks} ranks: {experiment.record.state.value}")
    for name, value in figures.items():
        print(f"{value:9.2f}  {name}")
    if target:
        target.write_text(json.dumps(figures, indent=1))
    return 0 if figures["ranks seen"] == ranks and experiment.record.state.value == "SUCCEEDED" else 1


if __name__ == "__main__":
    sys.exit(main())
