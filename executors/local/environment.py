"""The environment of a rank: the launcher's, without what belongs to other jobs, with what torchrun sets."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from nemorun.executors.local.plan import TaskPlan
from nemorun.executors.local.processes import TOKEN_VARIABLE

#: What a scheduler, torchrun, MPI or nemorun around the launcher has set for its own job, not for ours.
_OTHERS = re.compile(
    r"(SLURM|SBATCH|SALLOC|SRUN|PMI|PMIX|OMPI|TORCHELASTIC|NEMORUN)_(?!HOME$).*"
    r"|(LOCAL_|GROUP_|NODE_|ROLE_)?RANK|(LOCAL_|GROUP_|ROLE_)?WORLD_SIZE|ROLE_NAME|MASTER_(ADDR|PORT)"
)


def without_others(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if not _OTHERS.fullmatch(name)}


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def task_environment(
    task: TaskPlan, attempt: int, base: Mapping[str, str], secrets: frozenset[str]
) -> dict[str, str]:
    """What all ranks of an attempt share. `secrets` are all that `base` holds; a task sees those it named."""
    env = {name: value for name, value in base.items() if name not in secrets or name in task.secrets}
    if task.distributed:
        # Ranks on one machine would otherwise start a thread a CPU each, and stand in each other's way.
        env.setdefault("OMP_NUM_THREADS", str(max(1, cpus() // task.world_size)))
    env |= task.env
    if task.code:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [task.code, env.get("PYTHONPATH")]))
        env |= {"NEMORUN_CODE": task.code, "NEMORUN_CODE_ROOT": task.code_root or ""}
    return env | {
        "PYTHONUNBUFFERED": "1",
        "NEMORUN_EXPERIMENT": task.token.partition(".")[0],
        "NEMORUN_TASK": task.name,
        "NEMORUN_RUN_DIR": task.run_dir,
        "NEMORUN_RESULTS_DIR": f"{task.run_dir}/results",
        "NEMORUN_ATTEMPT": str(attempt),
        TOKEN_VARIABLE: task.token,
    }


def rank_environment(task: TaskPlan, attempt: int, rank: int, gpus: list[str]) -> dict[str, str]:
    """What one rank has besides; `gpus` are the task's, dealt out to its nodes in turn."""
    if not task.distributed:
        return {}
    node, local = divmod(rank, task.ntasks_per_node)
    env = {
        "RANK": str(rank),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": str(task.world_size),
        "LOCAL_WORLD_SIZE": str(task.ntasks_per_node),
        "NODE_RANK": str(node),
        "GROUP_RANK": str(node),
        "GROUP_WORLD_SIZE": str(task.nodes),
        "TORCHELASTIC_RUN_ID": task.token,
        "TORCHELASTIC_RESTART_COUNT": str(attempt - 1),
    }
    if task.gpus:
        share = gpus[node * task.gpus_per_node : (node + 1) * task.gpus_per_node]
        env["CUDA_VISIBLE_DEVICES"] = ",".join(share)
    return env
