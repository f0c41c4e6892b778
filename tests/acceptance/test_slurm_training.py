"""A real training run on the cluster: two nodes with two ranks each, preempted, and exact after that."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.slurm_rig import Rig, eventually

SETTINGS = """
executors:
  slurm:
    type: slurm
    tunnel: login-jump
    ssh_config: {config}
    job_dir: ~/training
    venv: /lustre/venv
    time: 20
    mem: 4G
    cpus_per_task: 1
"""
STEPS = 200
SHAPE = ("model.hidden_size=192", "model.num_layers=2", "model.ffn_hidden_size=512")  # a fifth of the work

LEARNED = ("step", "loss", "lr", "grad_norm", "val_loss")


def metrics(folder: Path) -> dict[int, dict[str, Any]]:
    """Step -> what was written down about it, but for the speed."""
    found: dict[int, dict[str, Any]] = {}
    for line in (folder / "results" / "metrics.jsonl").read_text().splitlines():
        numbers = json.loads(line)
        numbers = {name: value for name, value in numbers.items() if name in LEARNED}
        found.setdefault(numbers["step"], {}).update(numbers)
    return found


def ended(folder: Path) -> bool:
    """Asked of the file: a command that asks again and again takes the processor from the ranks."""
    journal = folder / "journal"
    return journal.exists() and " ended " in journal.read_text()


@pytest.mark.slow
def test_a_preempted_run_goes_on_and_learns_the_same(tmp_path: Path, rig: Rig) -> None:
    packages = ("torch==2.13.0", "numpy", "tensorboard", "safetensors", "tokenizers", "jinja2")
    rig("pip", "install", "-q", *packages)
    (tmp_path / "nemorun.yaml").write_text(SETTINGS.format(config=rig.config))
    corpus = rig.home / "corpus"
    corpus.mkdir(exist_ok=True)
    for number in range(12):
        (corpus / f"{number}.txt").write_text(f"{number} green bottles, standing on the wall. " * 200)

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
        return dict(task)

    def train(*words: str) -> tuple[str, Path]:
        identity = nemorun(
            *("run", "tiny_llama_pretrain", f"max_steps={STEPS}", "data_path=/home/alice/corpus"),
            *("trainer.num_nodes=2", "trainer.log_interval=1", "data.micro_batch_size=2", *SHAPE),
            *("-e", "slurm", "--detach", *words),
        )
        (folder,) = (rig.home / "training" / "experiments").glob(f"*-{identity}/tasks/*")
        return identity, folder

    whole, in_one_go = train()
    eventually(lambda: ended(in_one_go), 240)
    eventually(lambda: status(whole)["state"] == "SUCCEEDED")
    cut, in_two = train("executor.qos=low")
    reached = 4  # what is left outlasts the way of the preemption
    written = in_two / "results" / "metrics.jsonl"
    eventually(lambda: written.exists() and max(metrics(in_two), default=0) > reached, 120)
    node = rig("exec", "ctl", "squeue", "-h", "-j", status(cut)["handle"], "-o", "%B").strip()
    preempting = ["sbatch", "--qos=high", "--exclusive", f"--nodelist={node}", "-o", "/dev/null"]
    rig("exec", "login", "runuser", "-u", "bob", "--", *preempting, "--wrap", "sleep 1")
    eventually(lambda: ended(in_two), 240)
    eventually(lambda: status(cut)["state"] == "SUCCEEDED")

    assert status(cut)["attempt"] == 2
    assert "preempted" in (in_two / "journal").read_text()
    assert "goes on from step" in nemorun("logs", cut, "--rank", "0")
    assert sorted(metrics(in_one_go)) == list(range(1, STEPS + 1))
    assert metrics(in_two) == metrics(in_one_go)
    assert metrics(in_two)[STEPS]["loss"] < metrics(in_two)[1]["loss"] - 1
    assert len(list((in_two / "logs" / "attempt-2").glob("rank-?.log"))) == 4
    assert os.environ["NEMORUN_HOME"] not in (in_two / "task.yaml").read_text()
