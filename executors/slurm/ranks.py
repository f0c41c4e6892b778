"""The last lines of a script: what torch.distributed reads, and srun with all that it starts."""

from __future__ import annotations

import shlex
import sys
from pathlib import PurePath

from nemorun.executors.slurm import containers
from nemorun.executors.slurm.executor import SlurmExecutor
from nemorun.executors.slurm.paths import remote_experiment_dir
from nemorun.job import JobSpec

_NEXT_LINE = " \\\n        "
_LOGS = "$NEMORUN_RUN_DIR/logs/attempt-$NEMORUN_ATTEMPT"


def shares_files(executor: SlurmExecutor) -> bool:
    """Do ranks see the launcher's files, under the names that they have here?"""
    return executor.tunnel == "local" and executor.container_image is None


def inside(path: str | None, folder: str | None) -> str | None:
    """`path` as seen from `folder`, if it is in there."""
    if path is None or folder is None or not PurePath(path).is_relative_to(folder):
        return None
    return str(PurePath(path).relative_to(folder))


def working_folder(executor: SlurmExecutor, job: JobSpec) -> str:
    """The folder that ranks start in, as a word for a shell that has run `environment`."""
    if executor.container_workdir:
        return shlex.quote(executor.container_workdir)
    if shares_files(executor) and job.cwd:
        return shlex.quote(job.cwd)
    if not job.code:
        return '"$NEMORUN_RUN_DIR"'
    rest = inside(job.cwd, job.code_root)
    return '"$NEMORUN_CODE"' if rest in (None, ".") else f'"$NEMORUN_CODE"/{shlex.quote(str(rest))}'


def torch_variables(executor: SlurmExecutor, job: JobSpec) -> list[str]:
    """What all ranks share of it; a task of one process without GPUs gets nothing, as on one machine."""
    if not _is_distributed(executor, job):
        return []
    lines = [
        'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "export MASTER_ADDR MASTER_PORT=$((15000 + SLURM_JOB_ID % 15000))",
    ]
    if executor.launcher == "torchrun":  # which sets the rest, and whose ranks srun cannot tell apart
        return [*lines, f'export NEMORUN_RANK_LOGS="{_LOGS}"']
    if executor.het_groups:
        sizes = _sizes(executor, job)
        world, nodes = sum(count * ranks for count, ranks in sizes), sum(count for count, _ in sizes)
        lines.append(f"export WORLD_SIZE={world} GROUP_WORLD_SIZE={nodes}")
        # srun numbers the files of a second component wrongly: ranks write their own.
        lines.append(f'export NEMORUN_RANK_LOGS="{_LOGS}"')
    else:
        lines.append("export WORLD_SIZE=$((SLURM_NNODES * SLURM_NTASKS_PER_NODE))")
        lines.append('export LOCAL_WORLD_SIZE="$SLURM_NTASKS_PER_NODE" GROUP_WORLD_SIZE="$SLURM_NNODES"')
    lines.append(
        'export TORCHELASTIC_RUN_ID="$NEMORUN_TOKEN" TORCHELASTIC_RESTART_COUNT=$((NEMORUN_ATTEMPT - 1))'
    )
    return lines


def srun(executor: SlurmExecutor, job: JobSpec) -> list[str]:
    """The statements that start the ranks."""
    before: list[str] = []
    options = ["--kill-on-bad-exit=1"]
    rank = [*_wrapper(executor, job), *_program(executor, job)]
    if executor.launcher == "srun" and not executor.het_groups:
        options += [f'--output="{_LOGS}/rank-%t.log"', "--open-mode=append"]
    folder = working_folder(executor, job)
    if executor.container_image is None:
        options.append(f"--chdir={folder}")
    else:
        up = "/..".join([""] * (remote_experiment_dir(job.token, job.run_dir).count("/") + 2))
        before.append(f'local shared; shared=$(cd "$SLURM_SUBMIT_DIR{up}" && pwd) || exit')
        if executor.container_runtime == "pyxis":
            options += containers.srun_options(executor, job, folder, '"$shared"')
        else:
            gpus = job.resources.gpus_per_node > 0
            before += containers.apptainer_exports(executor, job)
            rank = [*containers.command(executor, folder, '"$shared"', gpus), *rank]
    options += map(shlex.quote, executor.srun_args)
    parts = [_NEXT_LINE.join([*options, *own, *rank]) for own in _each_component(executor, job)]
    return [*before, f"exec srun{_NEXT_LINE}{f'{_NEXT_LINE}: '.join(parts)}"]


def _each_component(executor: SlurmExecutor, job: JobSpec) -> list[list[str]]:
    """The options of srun that each component of the job has of its own."""
    counts = [executor.cpus_per_task, *(group.get("cpus_per_task") for group in executor.het_groups)]
    if executor.launcher == "torchrun":
        counts = [job.resources.ntasks_per_node * (executor.cpus_per_task or 1)]
    # Since Slurm 22.05 srun does not take the number of CPUs from the job.
    each = [[f"--cpus-per-task={count}"] if count else [] for count in counts]
    if not executor.het_groups:
        return each
    if any(each):
        return [[f"--het-group={number}", *options] for number, options in enumerate(each)]
    return [[f"--het-group={','.join(map(str, range(len(each))))}"]]


def _sizes(executor: SlurmExecutor, job: JobSpec) -> list[tuple[int, int]]:
    """(nodes, ranks on each) of every component."""
    further = [(group.get("nodes", 1), group.get("ntasks_per_node", 1)) for group in executor.het_groups]
    return [(job.resources.nodes, job.resources.ntasks_per_node), *further]


def _is_distributed(executor: SlurmExecutor, job: JobSpec) -> bool:
    several = job.resources.world_size > 1 or bool(executor.het_groups)
    return several or job.resources.gpus_per_node > 0 or executor.launcher == "torchrun"


#: Slurm warns the agent, which would die of it, and not the ranks, which have sessions of their own.
_WARNED_AGENT = (
    "trap : TERM",
    r'trap "kill -USR2 \$(cat /proc/\$!/task/*/children)" USR2',
    '(trap "" USR2; exec "$@") &',
    "until wait $!; code=$?; ! kill -0 $! 2>/dev/null; do :; done",
    "exit $code",
)


def _wrapper(executor: SlurmExecutor, job: JobSpec) -> list[str]:
    """A shell around each rank, for what only there is known."""
    steps = []
    if executor.venv and executor.container_image is not None:
        steps.append('export PATH="$VIRTUAL_ENV/bin:$PATH"')
    if executor.launcher == "srun" and _is_distributed(executor, job):
        node = "NODE_RANK=$SLURM_NODEID GROUP_RANK=$SLURM_NODEID"
        steps.append(f"export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID {node}")
    if executor.het_groups:
        sizes = _sizes(executor, job)
        ends = [sum(nodes * ranks for nodes, ranks in sizes[: n + 1]) for n in range(len(sizes) - 1)]
        steps.append(f"export NEMORUN_HET_GROUP=$(({' + '.join(f'(RANK >= {end})' for end in ends)}))")
        counts = " ".join(str(ranks) for _, ranks in sizes)
        steps.append(f"sizes=({counts}); export LOCAL_WORLD_SIZE=${{sizes[NEMORUN_HET_GROUP]}}")
    warned = executor.launcher == "torchrun" and job.resumable
    steps += _WARNED_AGENT if warned else ['exec "$@"'] if steps else []
    lines = "".join(f"            {step}\n" for step in steps)
    return [f"bash -c '\n{lines}        ' rank"] if steps else []


def _program(executor: SlurmExecutor, job: JobSpec) -> list[str]:
    """Python with the worker and what that is to run, a line each."""
    own = shares_files(executor) and executor.venv is None
    python = shlex.quote(sys.executable) if own else "python3"
    lines = [python]
    if executor.launcher == "torchrun":
        lines = [
            f'{python} -m torch.distributed.run --nnodes="$SLURM_NNODES"',
            f"--nproc-per-node={job.resources.ntasks_per_node}",
            "--rdzv-backend=c10d",
            '--rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT"',
            '--rdzv-id="$SLURM_JOB_ID.$NEMORUN_ATTEMPT"',
        ]
    if job.command is None:
        what = '"$NEMORUN_RUN_DIR/task.yaml"'
    else:
        what = " ".join(["--command", "--", *(_word(executor, job, python, word) for word in job.command)])
    lines[-1] += f' "$SLURM_SUBMIT_DIR/nemorun" {what}'
    return lines


def _word(executor: SlurmExecutor, job: JobSpec, python: str, word: str) -> str:
    """What names this interpreter, or a file of the frozen code, names its like there."""
    if word == sys.executable:
        return python
    file = inside(word, job.code_root) if job.code and PurePath(word).is_absolute() else None
    if file is None or shares_files(executor):  # there the worker finds the frozen file
        return shlex.quote(word)
    return f'"$NEMORUN_CODE"/{shlex.quote(file)}'
