"""The plan: what a submission to this machine consists of, as the text that a dry run prints."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass

from nemorun.job import JobSpec


@dataclass(frozen=True)
class TaskPlan:
    name: str
    token: str
    run_dir: str
    argv: list[str]
    cwd: str | None
    env: dict[str, str]
    secrets: list[str]
    """Names only; the values reach the supervisor through its environment."""
    code: str | None
    """Folder of the unpacked frozen code: first on PYTHONPATH."""
    code_root: str | None
    nodes: int
    ntasks_per_node: int
    gpus_per_node: int
    dependencies: list[str]
    retries: int
    time_limit: int | None
    """Seconds for one attempt."""

    @property
    def world_size(self) -> int:
        return self.nodes * self.ntasks_per_node

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def distributed(self) -> bool:
        """Does it get the environment of torch.distributed?"""
        return self.world_size > 1 or self.gpus > 0


@dataclass(frozen=True)
class Plan:
    grace_period: float
    """Seconds between SIGTERM and SIGKILL."""
    backoff: float
    """Seconds before the first retry; doubled for each further one."""
    max_parallel: int | None
    tasks: list[TaskPlan]

    def dumps(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def loads(cls, text: str) -> Plan:
        fields = json.loads(text)
        tasks = [TaskPlan(**task) for task in fields.pop("tasks")]
        return cls(tasks=tasks, **fields)


#: Python 3.10 has no -P: the folder it starts in goes before anything else is imported.
_PYTHON_310 = ["-c", "import sys; del sys.path[0]; from runpy import run_module as run; "]
_PYTHON_310[1] += "run('nemorun.worker', run_name='__main__', alter_sys=True)"


def worker_argv(job: JobSpec) -> list[str]:
    """The launcher's own interpreter with the worker; the folder it starts in never shadows an import."""
    worker = [
        sys.executable,
        *(["-P", "-m", "nemorun.worker"] if sys.version_info >= (3, 11) else _PYTHON_310),
    ]
    if job.task is not None:
        return [*worker, job.task]
    return [*worker, "--command", "--", *(job.command or ())]


def unpacked(archive: str) -> str:
    """Folder that a code archive is unpacked to: beside it, without `.tar.gz`."""
    return archive.removesuffix(".tar.gz")


def task_plan(job: JobSpec, env: dict[str, str], cwd: str | None, limit: int | None) -> TaskPlan:
    return TaskPlan(
        name=job.name,
        token=job.token,
        run_dir=job.run_dir,
        argv=worker_argv(job),
        cwd=cwd,
        env=dict(sorted(env.items())),
        secrets=sorted(job.secrets),
        code=unpacked(job.code) if job.code else None,
        code_root=job.code_root if job.code else None,
        nodes=job.resources.nodes,
        ntasks_per_node=job.resources.ntasks_per_node,
        gpus_per_node=job.resources.gpus_per_node,
        dependencies=list(job.dependencies),
        retries=job.retries,
        time_limit=limit,
    )
