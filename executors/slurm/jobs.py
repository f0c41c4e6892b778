"""A job against the executor's fields: what it gets, and whether it can run with them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nemorun.errors import ConfigError
from nemorun.executors.base import agreed
from nemorun.executors.slurm.values import check_environment, check_variable, gpus_of
from nemorun.job import JobSpec, Resources

if TYPE_CHECKING:
    from nemorun.executors.slurm.executor import SlurmExecutor


def check_job(executor: SlurmExecutor, job: JobSpec) -> None:
    """Raises ConfigError where a job cannot run with these fields."""
    # not with the fields' own checks: a script that is loaded again inside its task makes its executor there
    if executor.ssh_config is not None and not Path(executor.ssh_config).expanduser().is_file():
        raise ConfigError(f"ssh_config: there is no file {executor.ssh_config!r} on this machine")
    task, wanted = f"task '{job.name}'", job.resources
    check_environment(f"env of {task}", job.env)
    for name in job.secrets:
        check_variable(f"secrets of {task}", name)
    for word in job.command or ():
        if "\0" in word:
            raise ConfigError(f"the command of {task} has a NUL character in {word!r}")
    if job.retries and not executor.requeue:
        raise ConfigError(f"{task} has {job.retries} retries, which need requeue=True of its executor")
    if executor.mem_per_gpu is not None and not wanted.gpus_per_node:
        raise ConfigError(f"mem_per_gpu: {task} has no GPUs; set gpus_per_node, or mem instead")
    if executor.segment and wanted.nodes % executor.segment:
        raise ConfigError(f"segment: {executor.segment} does not divide the {wanted.nodes} nodes of {task}")
    if job.dependencies and "?" in (executor.dependency or ""):
        raise ConfigError(
            f"dependency: {executor.dependency!r} cannot be joined with the tasks that {task} waits for:"
            " Slurm mixes no '?' with ','"
        )


def resources(executor: SlurmExecutor, wanted: Resources | None) -> Resources:
    """The executor's fields if set, else what the task wants. Raises ConfigError where both differ."""

    def one(name: str, mine: int | None, why: str = "") -> int | None:
        return agreed(name, mine, None if wanted is None else getattr(wanted, name), why)

    nodes, ranks = one("nodes", executor.nodes), one("ntasks_per_node", executor.ntasks_per_node)
    gpus, why = executor.gpus_per_node, ""
    if executor.gpus_per_task is not None:
        gpus, why = executor.gpus_per_task * (ranks or 1), f" (gpus_per_task={executor.gpus_per_task})"
    elif (counted := gpus_of(executor.gres)) is not None:
        gpus, why = counted, f" (gres={executor.gres})"
    gpus = one("gpus_per_node", gpus, why)
    return Resources(nodes or 1, ranks or 1, gpus or 0)
