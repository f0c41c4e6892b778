"""The `#SBATCH` lines of a script: the fields in Slurm's words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nemorun.executors.slurm.executor import SlurmExecutor
from nemorun.executors.slurm.values import gpus_of
from nemorun.job import JobSpec

#: Fields that every component of a heterogeneous job has; the others belong to its kind of nodes.
_EVERYWHERE = ("account", "partition", "qos", "reservation", "time", "exclude", "network")
_FIRST = (
    *("cpus_per_task", "mem", "mem_per_gpu", "gres", "constraint", "nodelist"),
    *("switches", "segment", "nice", "dependency"),
)
_ORDER = (
    *("account", "partition", "qos", "reservation", "nodes", "ntasks_per_node", "gpus_per_node"),
    *("cpus_per_task", "mem", "mem_per_gpu", "gres", "time", "constraint", "nodelist", "exclude"),
    *("switches", "segment", "network", "nice", "dependency"),
)


def directive(option: str, value: object = None) -> str:
    """A line for sbatch. It reads double quotes and backslashes as a shell does, but knows no `$`."""
    if value is None:
        return f"#SBATCH --{option}"
    text = str(value)
    if not re.fullmatch(r"[\w@%+=:,./&|*()\[\]!?~{}^-]+", text):
        escaped = text.replace("\\", "\\\\").replace('"', '\\"')
        text = f'"{escaped}"'
    return f"#SBATCH --{option}={text}"


def sbatch_options(executor: SlurmExecutor, job: JobSpec) -> list[str]:
    """All lines but those that hold the unit's name."""
    ranks = job.resources.ntasks_per_node
    own: dict[str, Any] = {name: getattr(executor, name) for name in _FIRST}
    own |= {"nodes": job.resources.nodes, "ntasks_per_node": ranks}
    if executor.launcher == "torchrun":  # Slurm's task is the agent, and its ranks share what it has
        own |= {"ntasks_per_node": 1, "cpus_per_task": ranks * (executor.cpus_per_task or 1)}
    if job.resources.gpus_per_node and gpus_of(executor.gres) is None:
        own["gpus_per_node"] = job.resources.gpus_per_node
    lines = _component(executor, own)
    if executor.dependency:
        lines.append(directive("kill-on-invalid-dep", "yes"))
    lines.append(directive("open-mode", "append"))
    if signal := executor.signal or (_default_signal(executor) if job.resumable else None):
        lines.append(directive("signal", signal))
    lines.append(directive("requeue" if executor.requeue else "no-requeue"))
    lines += map(_given, executor.sbatch_args)
    for group in executor.het_groups:
        lines += ["#SBATCH hetjob", *_component(executor, {"nodes": 1, "ntasks_per_node": 1, **group})]
    return lines


def warning(executor: SlurmExecutor) -> int:
    """Seconds before the time limit at which a resumable task gets its signal."""
    _, at, seconds = (executor.signal or _default_signal(executor)).partition("@")
    return int(seconds) if at else 60  # Slurm's own


def _default_signal(executor: SlurmExecutor) -> str:
    """torchrun's agent hands TERM on to its ranks, but not USR2."""
    return "TERM@90" if executor.launcher == "torchrun" else "USR2@90"


def _component(executor: SlurmExecutor, own: Mapping[str, Any]) -> list[str]:
    values = {**{name: getattr(executor, name) for name in _EVERYWHERE}, **own}
    lines = [
        directive(name.replace("_", "-"), value)
        for name in _ORDER
        if (value := values.get(name)) is not None and (name, value) != ("gpus_per_node", 0)
    ]
    if executor.exclusive:
        lines.append(directive("exclusive", None if executor.exclusive is True else executor.exclusive))
    return lines


def _given(option: str) -> str:
    name, has_value, value = option.removeprefix("--").partition("=")
    return directive(name, value if has_value else None)
