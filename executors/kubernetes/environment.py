"""What a pod is told of its task: the folders in it, and the variables of its environment."""

from __future__ import annotations

import zlib
from pathlib import PurePath, PurePosixPath
from typing import TYPE_CHECKING

from nemorun.executors.kubernetes.names import experiment_folder, file_prefix
from nemorun.job import JobSpec

if TYPE_CHECKING:
    from nemorun.executors.kubernetes.executor import KubernetesExecutor

HOME, CODE = "/nemorun", "/nemorun/code"


def is_bare(executor: KubernetesExecutor, job: JobSpec) -> bool:
    """A plain command of the image's own code: nothing of nemorun needs to be in its pod."""
    alone = job.resources.nodes == 1 and job.resources.ntasks_per_node == 1
    return executor.code == "image" and job.command is not None and alone and executor.kind != "trainjob"


def run_dir(executor: KubernetesExecutor, job: JobSpec) -> str:
    """The task's own folder in the pod; on a volume, it is placed as on the launching machine."""
    if executor.run_dir is None:
        return f"{HOME}/run/{file_prefix(job.token)}"
    parts = PurePath(job.run_dir).parts
    start = len(parts) - 1 - parts[::-1].index(experiment_folder(job))
    return str(PurePosixPath(executor.run_dir, *parts[start:]))


def code_folder(executor: KubernetesExecutor, job: JobSpec) -> str | None:
    """Where the pod has the code, as far as one can tell."""
    if executor.code == "image":
        return executor.workdir
    return CODE if job.code else None


def archive(executor: KubernetesExecutor, job: JobSpec) -> str | None:
    """Where the pod finds the frozen code."""
    if not job.code or executor.code == "image":
        return None
    if executor.code == "configmap":
        return f"{HOME}/archive/code.tar.gz"
    return str(PurePosixPath(executor.run_dir or "/", "code", PurePath(job.code).name))


def port(executor: KubernetesExecutor, job: JobSpec) -> int:
    """On the node's own network, others may have the usual one."""
    return 15000 + zlib.crc32(job.token.encode()) % 15000 if executor.host_network else 29500


def environment(executor: KubernetesExecutor, job: JobSpec, host: str) -> dict[str, str]:
    env = dict(sorted((name, value) for name, value in job.env.items() if name != "PYTHONPATH"))
    if is_bare(executor, job):
        own_path = executor.env_vars.get("PYTHONPATH")
        return env | ({"PYTHONPATH": own_path} if own_path else {})
    if search := _search_path(executor, job):
        env["NEMORUN_PATH"] = search
    own = run_dir(executor, job)
    resources = job.resources
    env |= {
        "PYTHONUNBUFFERED": "1",
        "NEMORUN_EXPERIMENT": job.token.partition(".")[0],
        "NEMORUN_TASK": job.name,
        "NEMORUN_TOKEN": job.token,
        "NEMORUN_RUN_DIR": own,
        "NEMORUN_RESULTS_DIR": f"{own}/results",
        "NEMORUN_FILES": file_prefix(job.token),
        "NEMORUN_NODES": str(resources.nodes),
        "NEMORUN_RANKS": str(resources.ntasks_per_node),
    }
    if resources.world_size > 1 or resources.gpus_per_node:
        env["NEMORUN_DISTRIBUTED"] = "1"
        env |= {"NEMORUN_HOST": host, "NEMORUN_PORT": str(port(executor, job))}
    if resources.nodes > 1 or executor.code == "pvc":
        env["NEMORUN_START_TIMEOUT"] = str(executor.start_timeout)
    if job.resumable:
        env |= {"NEMORUN_RESUMABLE": "1", "NEMORUN_GRACE_PERIOD": str(executor.grace_period)}
    code, packed = code_folder(executor, job), archive(executor, job)
    if code:
        env |= {"NEMORUN_CODE": code, "NEMORUN_CODE_ROOT": code}
    if packed:
        env["NEMORUN_ARCHIVE"] = packed
    within = inside(job.cwd, job.code_root) if packed else None
    if executor.workdir or within:
        env["NEMORUN_WORKDIR"] = executor.workdir or str(PurePosixPath(CODE, within or ""))
    return env


def _search_path(executor: KubernetesExecutor, job: JobSpec) -> str:
    """What comes first in PYTHONPATH; a pod has none of the launching machine's own folders."""
    given = job.env.get("PYTHONPATH", "")
    if given == executor.env_vars.get("PYTHONPATH"):
        theirs = given.split(":") if given else []
    else:
        theirs = []
        code, unpacked = code_folder(executor, job), (job.code or "").removesuffix(".tar.gz")
        for entry in given.split(":"):
            within = inside(entry, unpacked or None)
            if within is not None and code is not None:
                theirs.append(str(PurePosixPath(code, within)))
    code = code_folder(executor, job)
    return ":".join(dict.fromkeys([*([code] if code else []), *theirs]))


def inside(path: str | None, folder: str | None) -> str | None:
    """`path` as seen from `folder`, if it is in there."""
    if not path or folder is None or not PurePath(path).is_relative_to(folder):
        return None
    return str(PurePath(path).relative_to(folder))
