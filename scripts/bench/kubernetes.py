#!/usr/bin/env python
"""What one Job of 128 nodes with 8 GPUs each costs the launcher: time, API calls, memory; beside kubectl.

    .venv/bin/python scripts/bench/kubernetes.py [--nodes 128] [--rounds 3] [--json FILE]

It needs `scripts/k8s-rig` (root, Debian 12), whose nodes are fake: their pods are scheduled and never run.
Both do the same to the same objects, in turns, so that the machine's speed and load cancel out of the ratio.
kubectl is asked for the Job and its pods, in a loop as `watch` does.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import nemorun as run
from nemorun.executors.kubernetes.api import api_of
from nemorun.job import JobState

RIG = Path(__file__).parents[1] / "k8s-rig"
NAMESPACE = "kr-bench"
#: A run is looked at this often while it is followed.
LOOKS = 20


class Bench:
    """One round: rendered, submitted, scheduled, looked at, cancelled."""

    def __init__(self, kubeconfig: str, nodes: int) -> None:
        self.nodes, self.kubeconfig = nodes, kubeconfig
        self.executor = run.KubernetesExecutor(
            namespace=NAMESPACE,
            kubeconfig=kubeconfig,
            image="nvcr.io/nvidia/nemo:24.05",
            nodes=nodes,
            ntasks_per_node=8,
            num_gpus=8,
            node_selector={"rig/kind": "fake"},
            grace_period=0,
        )
        self.found: dict[str, list[float]] = {}
        self.calls: dict[str, list[int]] = {}

    def step(self, name: str, act: Callable[[], Any]) -> Any:
        calls, began = api_of(self.executor).calls, time.perf_counter()
        value = act()
        self.found.setdefault(name, []).append(time.perf_counter() - began)
        self.calls.setdefault(name, []).append(api_of(self.executor).calls - calls)
        return value

    def kubectl(self, *words: str, stdin: str = "") -> str:
        argv = ["kubectl", "--kubeconfig", self.kubeconfig, "-n", NAMESPACE, *words]
        return subprocess.run(argv, input=stdin, text=True, capture_output=True, check=True).stdout

    def round(self) -> None:
        experiment = run.Experiment("bench", executor=self.executor)
        experiment.add(run.Command(["sleep", "3600"]), name="train")
        text = self.step("render", experiment.dry_run)
        self.step("submit", lambda: experiment.run(detach=True))
        record = experiment.record
        self._until_scheduled(record.id)
        self.step("status, once", record.refresh)
        record.refresh()  # from here on it is followed
        self.step(f"status, {LOOKS} times while followed", lambda: [self._look(record) for _ in range(LOOKS)])
        self.step("cancel", record.cancel)
        assert record.state is JobState.CANCELLED, record.statuses
        self._until_gone()
        self._round_of_kubectl(text)

    def _look(self, record: Any) -> None:
        record.refresh()
        (status,) = record.statuses.values()
        assert status.state is JobState.PENDING and f"{self.nodes} nodes" in status.message, status

    def _round_of_kubectl(self, text: str) -> None:
        timed = self.step
        timed("kubectl: apply", lambda: self.kubectl("apply", "--validate=false", "-f", "-", stdin=text))
        label = self.kubectl("get", "jobs", "-o", "jsonpath={.items[0].metadata.labels.nemorun/experiment}")
        self._until_scheduled(label)
        selector = f"nemorun/experiment={label}"
        look = lambda: self.kubectl("get", "jobs,pods", "-l", selector, "-o", "json")  # noqa: E731
        timed("kubectl: get, once", look)
        timed(f"kubectl: get, {LOOKS} times", lambda: [look() for _ in range(LOOKS)])
        timed("kubectl: delete", lambda: self.kubectl("delete", "-f", "-", "--wait=false", stdin=text))
        self._until_gone()

    def _until_scheduled(self, experiment: str) -> None:
        self._until(lambda: len(self._pods(experiment)) == self.nodes and all(self._pods(experiment)))

    def _until_gone(self) -> None:
        """Nobody is on the fake nodes who would confirm the end of a pod."""
        self.kubectl("delete", "pods", "--all", "--grace-period=0", "--force", "--wait=false")
        self._until(lambda: not self.kubectl("get", "jobs,pods", "-o", "name").strip())

    def _pods(self, experiment: str) -> list[str]:
        form = "jsonpath={range .items[*]}{.spec.nodeName}{'\\n'}{end}"
        return self.kubectl("get", "pods", "-l", f"nemorun/experiment={experiment}", "-o", form).splitlines()

    @staticmethod
    def _until(condition: Callable[[], bool]) -> None:
        give_up = time.monotonic() + 180
        while not condition():
            assert time.monotonic() < give_up, "the cluster does not come to it"
            time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    sys.path.remove(str(Path(__file__).resolve().parent))  # the package `kubernetes` is meant, not this file
    subprocess.run([RIG, "up", str(given.nodes)], check=True)
    facts = json.loads(subprocess.run([RIG, "env", "--json"], check=True, capture_output=True).stdout)
    with tempfile.TemporaryDirectory() as home:
        os.environ["NEMORUN_HOME"] = home
        os.chdir(home)
        bench = Bench(facts["kubeconfig"], given.nodes)
        kubectl = ["kubectl", "--kubeconfig", facts["kubeconfig"]]
        subprocess.run([*kubectl, "create", "namespace", NAMESPACE], capture_output=True)
        try:
            for _ in range(given.rounds):
                bench.round()
        finally:
            subprocess.run([*kubectl, "delete", "namespace", NAMESPACE, "--wait=false"], capture_output=True)
    report(bench, given)


def report(bench: Bench, given: argparse.Namespace) -> None:
    median = {name: statistics.median(seconds) for name, seconds in bench.found.items()}
    beside = {
        "submit": "kubectl: apply",
        "status, once": "kubectl: get, once",
        f"status, {LOOKS} times while followed": f"kubectl: get, {LOOKS} times",
        "cancel": "kubectl: delete",
    }
    table = Table(
        "", "seconds", "API calls", "kubectl", "ratio", title=f"one Job of {bench.nodes} nodes x 8 GPUs"
    )
    for name, seconds in median.items():
        if name.startswith("kubectl"):
            continue
        other = median.get(beside.get(name, ""))
        calls = "-".join(str(number) for number in sorted({min(bench.calls[name]), max(bench.calls[name])}))
        ratio = [f"{other:.3f}", f"{seconds / other:.2f}"] if other else ["", ""]
        table.add_row(name, f"{seconds:.3f}", calls, *ratio)
    # what has been needed at most, and so of all rounds together
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1024 if sys.platform == "linux" else 1 << 20
    )
    Console().print(table)
    print(f"memory of the launcher, at most: {memory:.0f} MiB; rounds: {given.rounds}")
    if given.json:
        found = {"seconds": median, "calls": bench.calls, "memory_mib": memory, "nodes": bench.nodes}
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
