"""`nemorun executors check`: can this cluster be used from here, and as these fields say?"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from nemorun.errors import NemorunError
from nemorun.executors.base import Check
from nemorun.executors.slurm.cluster import cluster_of
from nemorun.executors.slurm.facts import Facts
from nemorun.executors.slurm.limits import Options, problems
from nemorun.executors.slurm.ranks import shares_files
from nemorun.executors.slurm.submission import interpreter, place_problems, probe

if TYPE_CHECKING:
    from nemorun.executors.slurm.executor import SlurmExecutor

#: Seconds by which clocks may differ before it is worth a word.
_SKEW = 30


def check(executor: SlurmExecutor) -> list[Check]:
    """One line a thing; the first that fails hides those that need it."""
    try:
        executor.validate()
    except NemorunError as error:
        return [Check("fields", False, str(error))]
    try:
        cluster = cluster_of(executor)
        begun = time.monotonic()
        cluster.connection.connect()
        connected = time.monotonic() - begun
    except NemorunError as error:
        return [Check("connection", False, str(error))]
    begun = time.time()
    try:
        facts = probe(cluster, python=interpreter(executor), more=True)
    except NemorunError as error:
        return [
            Check("connection", True, f"{cluster.name}, in {connected:.1f} s"),
            Check("Slurm", False, str(error)),
        ]
    took = time.time() - begun
    host = "".join(facts.more.get("host", []))
    return [
        Check(
            "connection", True, f"{cluster.name} ({host}), in {connected:.1f} s; a command takes {took:.1f} s"
        ),
        *_of_slurm(executor, facts),
        *_of_place(executor, facts),
        _clock(facts, begun, took),
    ]


def _of_slurm(executor: SlurmExecutor, facts: Facts) -> Iterator[Check]:
    partitions = ", ".join(
        f"{one.name}{' (default)' if one.default else ''}" for one in facts.partitions.values()
    )
    yield Check("Slurm", True, f"version {facts.version}, arrays of up to {facts.max_array_size}")
    if facts.associations is None:
        yield Check("accounting", True, "none that can be asked: job states are known while Slurm keeps them")
    else:
        accounts = ", ".join(sorted({one.account for one in facts.associations}))
        qos = ", ".join(sorted({name for one in facts.associations for name in one.qos}))
        yield Check("accounting", True, f"your accounts: {accounts or 'none'}; your QOS: {qos or 'any'}")
    found = [problem for options in _wanted(executor) for problem in problems(options, facts)]
    for problem in found:
        yield Check("request", False, problem)
    if not found:
        yield Check("request", True, f"these fields fit the cluster, which has the partitions {partitions}")
    gpus = {
        f"{max(node.gpus.values())} {kind or 'GPUs'}"
        for node in facts.nodes
        for kind in node.gpus
        if node.gpus[kind]
    }
    yield Check("GPUs", True, f"nodes with {', '.join(sorted(gpus))}" if gpus else "Slurm knows of none")


def _wanted(executor: SlurmExecutor) -> Iterator[Options]:
    """The fields as options of sbatch."""
    names = ["account", "partition", "qos", "time", "nodes", "ntasks_per_node", "cpus_per_task"]
    names += ["gpus_per_node", "gpus_per_task", "gres", "mem", "mem_per_gpu"]
    own = {name: value for name in names if (value := getattr(executor, name)) is not None}
    for group in ({}, *executor.het_groups):
        merged = {**own, **group}
        yield {name.replace("_", "-"): str(value) for name, value in merged.items()}


def _of_place(executor: SlurmExecutor, facts: Facts) -> Iterator[Check]:
    found = place_problems(executor, facts)
    of_python = [problem for problem in found if not problem.startswith("job_dir")]
    of_folder = [problem for problem in found if problem.startswith("job_dir")]
    free = f", {facts.free / 1e9:.1f} GB free" if facts.free is not None else ""
    yield Check("job_dir", not of_folder, "; ".join(of_folder) or f"{facts.job_dir} can be written{free}")
    if facts.python is None and shares_files(executor) and not (executor.modules or executor.setup):
        yield Check("Python", True, f"{sys.executable}, which runs nemorun here")
    elif facts.python is None:
        yield Check("Python", True, "comes from the container, modules or setup: seen when a job runs")
    else:
        yield Check("Python", not of_python, "; ".join(of_python) or facts.python)
        if not of_python:
            torch = "".join(facts.more.get("torch", []))
            advice = "not there: recipes that train need it; set venv to a virtual environment that has it"
            yield Check("torch", True, torch or advice, advice=not torch)
    runtimes = [path.rpartition("/")[2] for path in facts.more.get("containers", [])]
    if executor.container_image:
        runtime = executor.container_runtime
        there = runtime in runtimes or (runtime == "apptainer" and "singularity" in runtimes)
        missing = f"container_image needs {runtime}, which is not on the login node"
        if runtime == "pyxis":
            missing += " (srun has no --container-image)"
        if runtimes:
            missing += f"; there is {', '.join(runtimes)}: see container_runtime"
        yield Check("containers", there, runtime if there else missing)
    else:
        yield Check(
            "containers", True, ", ".join(runtimes) or "no runtime; container_image is not set, either"
        )


def _clock(facts: Facts, begun: float, took: float) -> Check:
    there = float(facts.more["time"][0])
    skew = there - (begun + took / 2)
    fine = abs(skew) < _SKEW + took
    words = f"differs by {skew:+.0f} s: times in `nemorun status` will be wrong; set the clock of one of them"
    return Check("clock", fine, "agrees with this machine's" if fine else words)
