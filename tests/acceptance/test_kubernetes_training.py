"""A real training run in pods: two with two ranks each; suspended, then one of them killed, and exact."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.k8s_rig import K8sRig
from tests.slurm_rig import eventually

SETTINGS = """
executors:
  k8s:
    type: kubernetes
    kubeconfig: {kubeconfig}
    namespace: {namespace}
    image: {image}
    node_selector: {{rig/kind: real}}
    volumes: ["hostpath:{packages}:/packages:ro", "hostpath:{shared}:/shared"]
    run_dir: /shared/runs
    env_vars: {{PYTHONPATH: /packages, OMP_NUM_THREADS: "1"}}
    retries: 1
"""
STEPS = 48


LEARNED = ("step", "loss", "lr", "grad_norm", "val_loss")


def metrics(folder: Path) -> dict[int, dict[str, Any]]:
    """Step -> what was written down about it, but for the speed."""
    found: dict[int, dict[str, Any]] = {}
    for line in (folder / "results" / "metrics.jsonl").read_text().splitlines():
        numbers = json.loads(line)
        numbers = {name: value for name, value in numbers.items() if name in LEARNED}
        found.setdefault(numbers["step"], {}).update(numbers)
    return found


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder of this machine that pods of the real node mount; they write as root."""
    with tempfile.TemporaryDirectory(prefix="nr-shared-") as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the pods' Python is 3.11, and mounts our torch")
def test_a_run_that_was_suspended_and_whose_pod_was_killed_learns_the_same(
    tmp_path: Path, shared: Path, k8s_node: K8sRig, k8s_namespace: str
) -> None:
    import torch

    settings = {
        "kubeconfig": k8s_node.admin,
        "namespace": k8s_namespace,
        "image": k8s_node.image,
        "packages": Path(torch.__file__).parents[1],
        "shared": shared,
    }
    (tmp_path / "nemorun.yaml").write_text(SETTINGS.format(**settings))
    (shared / "corpus").mkdir()
    for number in range(12):
        (shared / "corpus" / f"{number}.txt").write_text(f"{number} green bottles, standing there. " * 200)

    def nemorun(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "nemorun", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout.strip()

    def status(identity: str) -> dict[str, Any]:
        (task,) = json.loads(nemorun("status", identity, "--json"))["tasks"]
        assert task["state"] != "FAILED", nemorun("logs", identity)
        return dict(task)

    def train() -> str:
        return nemorun(
            *("run", "tiny_llama_pretrain", f"max_steps={STEPS}", "data_path=/shared/corpus"),
            *("trainer.num_nodes=2", "trainer.log_interval=1", "data.micro_batch_size=2", "-e", "k8s"),
            *("checkpoint.interval=4", "--detach"),
        )

    def folder(identity: str) -> Path:
        (found,) = (shared / "runs").glob(f"*-{identity}/tasks/*")
        return found

    whole = train()
    nemorun("logs", "--follow", whole)  # one command, where asking again and again would take the processor
    eventually(lambda: status(whole)["state"] == "SUCCEEDED")
    cut = train()
    eventually(lambda: list((shared / "runs").glob(f"*-{cut}/tasks/*/results/metrics.jsonl")), 120)
    eventually(lambda: max(metrics(folder(cut)), default=0) > STEPS // 12, 120)
    nemorun("suspend", cut)
    eventually(lambda: not k8s_node.get("pods", k8s_namespace, "-l", f"nemorun/experiment={cut}"), 60)
    reached = max(metrics(folder(cut)))
    assert reached < STEPS
    assert status(cut)["reason"] == "suspended"
    nemorun("resume", cut)
    eventually(lambda: max(metrics(folder(cut))) > reached + 1, 120)
    pods = k8s_node.get("pods", k8s_namespace, "-l", f"nemorun/experiment={cut}")
    killed = pods[-1]["metadata"]["name"]
    k8s_node.kubectl("delete", "pod", killed, "-n", k8s_namespace, "--grace-period=0", "--force")
    nemorun("logs", "--follow", cut)
    eventually(lambda: status(cut)["state"] == "SUCCEEDED")

    assert nemorun("logs", cut, "--rank", "0").count("goes on from step") == 2
    assert sorted(metrics(folder(whole))) == list(range(1, STEPS + 1))
    assert metrics(folder(cut)) == metrics(folder(whole))
    assert metrics(folder(cut))[STEPS]["loss"] < metrics(folder(cut))[1]["loss"] - 1
