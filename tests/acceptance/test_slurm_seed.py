"""The Slurm snippets of the design document, with only the import line changed, on a login node.

nemorun is installed there into a virtual environment, and a tunnel is not needed.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.slurm_rig import SLURM_RIG, Rig

ROOT = Path(__file__).parents[2]
PREAMBLE = """
    import nemorun as run
    from nemorun.llm import DataConfig, GPTConfig
    from nemorun.training import TrainerConfig

    def train(model: GPTConfig, trainer: TrainerConfig, data: DataConfig):
        import os
        print(f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} hidden={model.hidden_size}")
        return trainer.max_steps

    @run.cli.factory
    def my_experiment():
        return run.Partial(
            train,
            model=GPTConfig(hidden_size=4096),
            trainer=TrainerConfig(max_steps=10000),
            data=DataConfig(path="/data/train.jsonl")
        )
"""


class LoginNode:
    """A folder on the login host, and alice's Python there."""

    def __init__(self, rig: Rig) -> None:
        self.folder = rig.home / "seed"
        self.folder.mkdir(exist_ok=True)
        os.chown(self.folder, rig.facts["users"]["alice"]["uid"], -1)

    def __call__(self, body: str) -> subprocess.CompletedProcess[str]:
        (self.folder / "snippet.py").write_text(textwrap.dedent(PREAMBLE) + textwrap.dedent(body))
        command = "cd ~/seed && exec /lustre/venv/bin/python snippet.py"
        return subprocess.run(
            [SLURM_RIG, "exec", "login", "runuser", "-l", "alice", "-c", command],
            capture_output=True,
            text=True,
            timeout=180,
            stdin=subprocess.DEVNULL,
        )


@pytest.fixture(scope="session")
def login_node(rig: Rig) -> LoginNode:
    shared = Path(rig.facts["lustre"])  # /lustre there
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        shared,
        ROOT,
    ]
    subprocess.run(build, check=True, capture_output=True)
    shutil.copy(ROOT / "requirements.lock", shared)
    (wheel,) = shared.glob("nemorun-*.whl")
    needed = ("typer", "rich", "pyyaml", "pydantic", "pathspec")  # on a login node
    rig("pip", "install", "-q", "-c", "/lustre/requirements.lock", *needed)
    rig("pip", "install", "-q", "--no-deps", "--force-reinstall", f"/lustre/{wheel.name}")
    return LoginNode(rig)


def test_basic_usage(login_node: LoginNode) -> None:
    done = login_node(
        """
        # Run on Slurm
        run.run(my_experiment(), executor=run.SlurmExecutor(
            nodes=4,
            ntasks_per_node=8,
            gpus_per_task=1,
            partition="batch"
        ))
        """
    )
    assert done.returncode == 0, done.stderr
    lines = [line.partition("] ")[2] for line in done.stdout.splitlines()]
    assert sorted(lines) == sorted(f"rank {rank} of 32 hidden=4096" for rank in range(32)), done.stdout


def test_executors(login_node: LoginNode) -> None:
    """This cluster has no such partition, and says which it has."""
    done = login_node(
        """
        slurm = run.SlurmExecutor(
            account="project_name",
            partition="gpu",
            nodes=8,
            ntasks_per_node=8,
            time="24:00:00",
            exclusive=True
        )
        run.run(my_experiment(), executor=slurm)
        """
    )
    assert done.returncode == 1
    for words in ("partition='gpu'", "batch, interactive", "nothing was submitted"):
        assert words in done.stderr, done.stderr


def test_experiment_tracking(login_node: LoginNode) -> None:
    done = login_node(
        """
        import os
        from pathlib import Path

        def work():
            assert os.environ["NEMORUN_TENSORBOARD"] == "1"
            Path(os.environ["NEMORUN_RESULTS_DIR"], "seen").write_text("yes")

        training_task = run.Partial(work)
        slurm = run.SlurmExecutor(time=5, mem="100M")

        # Configure logging
        experiment = run.Experiment(
            name="llama-finetune",
            log_dir="results/experiments",
            tensorboard=True,
        )

        # Run with tracking
        with experiment:
            run.run(training_task, executor=slurm)
        """
    )
    assert done.returncode == 0, done.stderr
    identity = done.stderr.partition("(")[2].partition(")")[0]
    found = login_node.folder.parent / "nemorun" / "experiments" / f"llama-finetune-{identity}"
    assert [path.read_text() for path in found.rglob("results/seen")] == ["yes"]


def test_multi_node_training(login_node: LoginNode) -> None:
    """It needs 4 nodes with a container runtime: what is submitted is shown."""
    done = login_node(
        """
        # NeMo-Run handles Slurm automatically
        executor = run.SlurmExecutor(
            account="my_project",
            partition="gpu",
            nodes=4,
            ntasks_per_node=8,
            gpus_per_task=1,
            time="48:00:00",
            container_image="nvcr.io/nvidia/nemo:24.05",
            env_vars={
                "NCCL_DEBUG": "INFO",
                "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"
            }
        )
        run.run(my_experiment(), executor=executor, dry_run=True)
        """
    )
    assert done.returncode == 0, done.stderr
    wanted = [
        *("#SBATCH --account=my_project", "#SBATCH --partition=gpu", "#SBATCH --nodes=4"),
        *("#SBATCH --ntasks-per-node=8", "#SBATCH --time=48:00:00", "export NCCL_DEBUG=INFO"),
        f"export CUDA_VISIBLE_DEVICES={shlex.quote('0,1,2,3,4,5,6,7')}",
        "MASTER_ADDR=$(scontrol show hostnames",
        "WORLD_SIZE=$((SLURM_NNODES * SLURM_NTASKS_PER_NODE))",
        "nvcr.io#nvidia/nemo:24.05",
    ]
    for line in wanted:
        assert line in done.stdout, done.stdout


def test_the_command_line_on_the_login_node(login_node: LoginNode) -> None:
    command = "cd ~/seed && /lustre/venv/bin/nemorun list --json"
    done = subprocess.run(
        [SLURM_RIG, "exec", "login", "runuser", "-l", "alice", "-c", command], capture_output=True, text=True
    )
    assert done.returncode == 0 and isinstance(json.loads(done.stdout), list), done.stderr
