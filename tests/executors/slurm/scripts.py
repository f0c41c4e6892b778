"""Submissions whose scripts are kept as golden files: together they use every field."""

from __future__ import annotations

from typing import Any

from nemorun.executors.slurm import HetGroup, SlurmExecutor
from nemorun.executors.slurm.script import SlurmRendered, render
from nemorun.job import JobSpec, Resources

ID = "k3x9q2ab"
STORE = "/home/me/.nemorun"
ARCHIVE = f"{STORE}/code/4f2a91c07b3d{'e' * 52}.tar.gz"
UNPACKED = ARCHIVE.removesuffix(".tar.gz")
PYTHON = "/home/me/venv/bin/python"  # the launcher's
AWKWARD = {
    "COMMAS": "a,b,c",
    "QUOTES": """it's "quoted" `x` \\ """,
    "DOLLARS": "$HOME ${PATH} $(date) !!",
    "LINES": "one\n  two\n",
    "EMPTY": "",
    "lower_case": "kept",
    "UNICODE": "ä → 火",
}


def job(name: str = "train", group: str = "", **fields: Any) -> JobSpec:
    run_dir = f"{STORE}/experiments/llama-{ID}{group}/tasks/{name}"
    what = {} if "command" in fields else {"task": f"{run_dir}/task.yaml"}
    frozen = {"code": ARCHIVE, "code_root": "/home/me/project", "cwd": "/home/me/project"}
    fields = {
        "resources": Resources(),
        "token": f"{ID}.{name}",
        "run_dir": run_dir,
        **frozen,
        **what,
        **fields,
    }
    return JobSpec(name, **fields)


def cluster(**fields: Any) -> SlurmExecutor:
    return SlurmExecutor(**{"tunnel": "cluster", **fields})


GPUS = Resources(nodes=4, ntasks_per_node=8, gpus_per_node=8)
CONTAINER: dict[str, Any] = {
    "container_image": "nvcr.io/nvidia/nemo:24.05",
    "container_mounts": ["$SCRATCH/data:/data:ro", "~/my.cache:/root/.cache"],
    "env_vars": {"NCCL_DEBUG": "INFO"},
}

SUBMISSIONS: dict[str, list[tuple[SlurmExecutor, JobSpec]]] = {
    "one-process": [(cluster(), job())],
    "gpus": [
        (
            cluster(partition="batch", gpus_per_task=1, time="24:00:00", modules=["cuda/12.2", "nccl/2.18"]),
            job(resources=GPUS, resumable=True, retries=2, env={"NCCL_DEBUG": "INFO"}),
        )
    ],
    "every-option": [
        (
            cluster(
                account="project_name",
                partition="gpu,batch",
                qos="high",
                reservation="maintenance",
                nodes=4,
                ntasks_per_node=2,
                cpus_per_task=14,
                mem="64G",
                time="1-12:30:00",
                exclusive=True,
                constraint="h100&(nvme|ssd)",
                nodelist="node[001-002],node004",
                exclude="node003",
                gres="gpu:h100:2,lustre:1",
                switches="1@2:00:00",
                segment=2,
                network="sn_single",
                nice=100,
                dependency="afterok:1234:1235_7,afterany:99",
                comment='it\'s #1 of "mine" \\ yours',
                signal="B:USR1@300",
                requeue=False,
                srun_args=["--mpi=pmix", "--cpu-bind=mask_cpu:0x1 0x2"],
                sbatch_args=["--mail-type=END", "--mail-user=me@example.org", "--hold", "--wckey=a b"],
            ),
            job(resources=Resources(4, 2, 2), dependencies=("prepare", "fetch"), resumable=True),
        ),
        (cluster(exclusive="user", mem_per_gpu="80G"), job("prepare", resources=Resources(gpus_per_node=1))),
        (cluster(exclusive="mcs", time=30, nice=-5, switches=1, signal="TERM"), job("fetch", resumable=True)),
    ],
    "environment": [
        (
            cluster(
                venv="$SCRATCH/venvs/nemo 2",
                setup=["ulimit -c 0", "cat >hosts <<END", "  $(hostname)", "END"],
            ),
            job(
                env={**AWKWARD, "PYTHONPATH": f"{UNPACKED}:{UNPACKED}/my src:/home/me/elsewhere"},
                secrets=("HF_TOKEN",),
                cwd="/home/me/project/sub folder",
            ),
        )
    ],
    "command": [
        (
            cluster(),
            job(
                command=(
                    PYTHON,
                    "/home/me/project/my script.py",
                    "--text",
                    "it's $HOME",
                    "*",
                    "",
                    "/data/x.py",
                ),
                resources=Resources(ntasks_per_node=2),
            ),
        ),
        (
            cluster(env_vars={"PYTHONPATH": "/cluster/lib"}),
            job("shell", command=("bash", "run.sh"), code=None, env={"PYTHONPATH": "/cluster/lib"}),
        ),
    ],
    "pyxis": [
        (
            cluster(**CONTAINER, container_env=["NCCL_DEBUG", "CUDA_HOME"], venv="/opt/my venv"),
            job(resources=GPUS, env={"NCCL_DEBUG": "INFO"}, secrets=("HF_TOKEN",), group="/group-2"),
        ),
        (cluster(container_image="/images/nemo.sqsh", container_workdir="/my work"), job("file")),
    ],
    "apptainer": [
        (
            cluster(**CONTAINER, container_runtime="apptainer", container_env=["NCCL_DEBUG"]),
            job(resources=GPUS, env={"NCCL_DEBUG": "INFO"}),
        ),
        (cluster(container_image="$SCRATCH/nemo.sif", container_runtime="apptainer"), job("file")),
    ],
    "torchrun": [
        (cluster(launcher="torchrun", cpus_per_task=4), job(resources=GPUS, resumable=True)),
        (
            cluster(launcher="torchrun", signal="USR1@30", container_image="nvidia/cuda"),
            job("two", resources=Resources(ntasks_per_node=2), resumable=True),
        ),
    ],
    "heterogeneous": [
        (
            cluster(
                account="research",
                partition="gpu",
                constraint="h100",
                time="2:00:00",
                het_groups=[HetGroup(partition="cpu", ntasks_per_node=3, mem="8G"), HetGroup(nodes=2)],
            ),
            job(resources=Resources(2, 8, 8)),
        ),
        (
            cluster(
                cpus_per_task=4,
                het_groups=[
                    HetGroup(
                        ntasks_per_node=2, cpus_per_task=16, gpus_per_node=1, constraint="big", gres="x:1"
                    )
                ],
            ),
            job("uneven", resources=Resources(ntasks_per_node=2)),
        ),
    ],
    "arrays": [
        *(
            (cluster(array="%4"), job(f"lr-{number}", dependencies=("prepare",), env={"A": "1"}))
            for number in range(12)
        ),
        (cluster(array="%4"), job("lr-other", dependencies=("prepare",), env={"A": "2"})),
        (cluster(), job("prepare")),
        (cluster(array=False), job("alone-1")),
        (cluster(array=False), job("alone-2")),
        (cluster(mem=100), job("report-1", dependencies=("lr-3", "lr-7"))),
        (cluster(mem=100), job("report-2", dependencies=("lr-7", "lr-3"))),
        (cluster(mem=100), job("array-1", dependencies=("report-1",))),
    ],
    "login-node": [
        (
            SlurmExecutor(),
            job(
                command=(PYTHON, "train.py"),
                cwd="/home/me/project/sub folder",
                env={"PYTHONPATH": f"{UNPACKED}/src:/home/me/elsewhere"},
            ),
        ),
        (SlurmExecutor(venv="/opt/venv"), job("other", code=None, cwd="/home/me")),
    ],
}


def rendered(name: str) -> SlurmRendered:
    pairs = SUBMISSIONS[name]
    for executor, one in pairs:
        executor.validate()
        executor.check_job(one)
    return render(pairs)
