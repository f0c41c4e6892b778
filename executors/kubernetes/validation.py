"""Checks the fields, each and together, and a job against them, before anything connects."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nemorun.errors import ConfigError, did_you_mean
from nemorun.executors.base import agreed
from nemorun.executors.kubernetes import overrides, volumes
from nemorun.executors.kubernetes.trainjob import POD_FIELDS
from nemorun.executors.kubernetes.values import FIELDS, keys
from nemorun.job import JobSpec, Resources

if TYPE_CHECKING:
    from nemorun.executors.kubernetes.executor import KubernetesExecutor

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_fields(executor: KubernetesExecutor) -> None:
    """Raises ConfigError that names the field, its value and what is allowed."""
    optional = {name for name, field in executor.__dataclass_fields__.items() if field.default is None}
    for name, check in FIELDS.items():
        value = getattr(executor, name)
        if not (value is None and name in optional) and (why := check(value)):
            raise ConfigError(f"{name}: {value!r} {why}")
    if executor.kubeconfig is not None and not Path(executor.kubeconfig).expanduser().is_file():
        raise ConfigError(f"kubeconfig: there is no file {executor.kubeconfig!r} on this machine")
    check_environment("env_vars", executor.env_vars)
    if not isinstance(executor.volumes, list | tuple):
        raise ConfigError(f"volumes: {executor.volumes!r} is not a list, such as ['pvc:training-data:/data']")
    mounts = volumes.parse(executor.volumes)
    if why := keys(executor.pod_overrides, ("metadata", "spec")):
        raise ConfigError(f"pod_overrides: {executor.pod_overrides!r} {why}")
    for part, value in executor.pod_overrides.items():
        if not isinstance(value, Mapping):
            raise ConfigError(f"pod_overrides.{part}: {value!r} is not a mapping")
        overrides.check(value, f"pod_overrides.{part}")
    overrides.check(dict(executor.affinity), "affinity")
    overrides.check(dict(executor.security_context), "security_context")
    _check_together(executor, mounts)


def _check_together(executor: KubernetesExecutor, mounts: list[volumes.Mount]) -> None:
    """What is right by itself, but not with another field."""
    if executor.run_dir is not None:
        volume = volumes.volume_of(mounts, executor.run_dir)
        if volume is None or volume.read_only:
            raise ConfigError(
                f"run_dir: {executor.run_dir!r} is not on a volume that can be written to; mount one there,"
                f" such as volumes=['pvc:CLAIM:{executor.run_dir}']"
            )
        if "emptyDir" in volume.source:
            raise ConfigError(f"run_dir: {executor.run_dir!r} is on an emptydir, which ends with its pod")
    if executor.code == "pvc" and executor.run_dir is None:
        raise ConfigError("code: 'pvc' puts the code into run_dir; set run_dir to a folder of a volume")
    if executor.topology is not None and executor.queue is None:
        raise ConfigError(f"topology: {executor.topology!r} is Kueue's business; set queue as well")
    if executor.kind == "pytorchjob" and executor.container_name not in (None, "pytorch"):
        raise ConfigError(
            f"container_name: {executor.container_name!r} cannot be: a PyTorchJob's is 'pytorch'"
        )
    if executor.kind == "trainjob":
        _check_trainjob(executor)


def _check_trainjob(executor: KubernetesExecutor) -> None:
    """A TrainJob's pods are its runtime's; it may change a few things only."""
    plain = type(executor)()
    for name in (
        *("image_pull_policy", "container_name", "env_from_secrets", "host_network", "priority_class"),
        *("backoff_limit", "ttl_after_finished", "grace_period", "retries"),
    ):
        if (value := getattr(executor, name)) != getattr(plain, name):
            raise ConfigError(
                f"{name}: {value!r} cannot be set with kind='trainjob': that is what its runtime "
                f"'{executor.runtime}' says"
            )
    if executor.active_deadline is not None and executor.runtime_patch != "runtimePatches":
        raise ConfigError(
            f"active_deadline: {executor.active_deadline!r} needs Trainer 2.2, with"
            " runtime_patch='runtimePatches'"
        )
    if executor.topology and executor.runtime_patch == "podSpecOverrides":
        raise ConfigError(
            f"topology: {executor.topology!r} needs Trainer 2.1, which has podTemplateOverrides"
        )
    for name in executor.pod_overrides.get("spec", {}):
        if name not in POD_FIELDS:
            raise ConfigError(
                f"pod_overrides.spec: a TrainJob cannot set {name!r}; it can set {', '.join(POD_FIELDS)}"
                f"{did_you_mean(name, POD_FIELDS)}"
            )


def check_job(executor: KubernetesExecutor, job: JobSpec) -> None:
    """Raises ConfigError where this task cannot run as the fields say."""
    if executor.image is None:
        raise ConfigError(
            "image: None is not an image; set the one that ranks run in, such as nvcr.io/nvidia/nemo:24.05"
        )
    check_environment(f"env of task '{job.name}'", job.env)
    for word in job.command or ():
        if "\0" in word:
            raise ConfigError(f"task '{job.name}': its command holds a NUL character: {word!r}")
    if executor.kind == "trainjob" and job.retries:
        raise ConfigError(
            f"task '{job.name}': {job.retries} retries cannot be with kind='trainjob': how often a pod is "
            f"started again is what its runtime '{executor.runtime}' says"
        )
    from nemorun.executors.kubernetes.code import check_size

    check_size(executor, job)


def resources(executor: KubernetesExecutor, wanted: Resources | None) -> Resources:
    """The executor's numbers, and else the task's. Raises ConfigError where both are set and differ."""
    fields = {}
    for field, name in (
        ("nodes", "nodes"),
        ("ntasks_per_node", "ntasks_per_node"),
        ("num_gpus", "gpus_per_node"),
    ):
        theirs = None if wanted is None else getattr(wanted, name)
        if (value := agreed(field, getattr(executor, field), theirs)) is not None:
            fields[name] = value
    return Resources(**fields)


def check_environment(where: str, env: object) -> None:
    if not isinstance(env, Mapping):
        raise ConfigError(f"{where}: {env!r} is not a mapping of names to values")
    for name, value in env.items():
        if not (isinstance(name, str) and _ENV_NAME.fullmatch(name)):
            raise ConfigError(
                f"{where}: {name!r} cannot be the name of an environment variable: letters, digits and _ "
                "only, and no digit first"
            )
        if not isinstance(value, str) or "\0" in value:
            raise ConfigError(f"{where}: the value of {name}, {value!r}, must be text without NUL characters")
