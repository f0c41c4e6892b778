"""The pods of a task: image, resources, environment, volumes; the same whatever object they are part of."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from nemorun.executors.kubernetes import volumes
from nemorun.executors.kubernetes.environment import HOME, code_folder, environment, inside, is_bare, run_dir
from nemorun.executors.kubernetes.names import code_name, labels, object_name, parent_name
from nemorun.executors.kubernetes.overrides import merge
from nemorun.job import JobSpec

if TYPE_CHECKING:
    from nemorun.executors.kubernetes.executor import KubernetesExecutor

#: Of a security context, what is the container's; the rest is the pod's.
CONTAINER_SECURITY = {
    "allowPrivilegeEscalation",
    "capabilities",
    "privileged",
    "procMount",
    "readOnlyRootFilesystem",
}


def template(
    executor: KubernetesExecutor,
    job: JobSpec,
    *,
    container: str = "nemo",
    host: str = "localhost",
    env: Mapping[str, str] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """A pod's metadata and spec. `host` is the name of node 0, `spec` what the kind of object asks for."""
    name = executor.container_name or container
    extra_volumes, mounts = _volumes(executor, job)
    pod: dict[str, Any] = {"containers": [_container(executor, job, name, host, env or {}, mounts)]}
    pod |= {key: value for key, value in _pod_fields(executor).items() if value not in (None, [], {})}
    pod |= {"volumes": extra_volumes} if extra_volumes else {}
    pod |= {key: value for key, value in spec.items() if value is not None}
    metadata: dict[str, Any] = {"labels": {**labels(job), **executor.labels}}
    if annotations := {**executor.annotations, **topology(executor)}:
        metadata["annotations"] = annotations
    return merge({"metadata": metadata, "spec": pod}, executor.pod_overrides)


def bare_pod(executor: KubernetesExecutor, job: JobSpec, command: list[str], name: str) -> dict[str, Any]:
    """A Pod with the task's image, environment, resources and mounts, but with a command of its own."""
    made = template(executor, job, restartPolicy="Never")
    made["spec"]["containers"][0] |= {"command": [_literal(word) for word in command]}
    made["spec"]["containers"][0].pop("args", None)
    metadata = {**made["metadata"], "name": name}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": placed(executor, metadata), "spec": made["spec"]}


def placed(executor: KubernetesExecutor, metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata with the namespace; without the field it is the context's."""
    if executor.namespace is None:
        return metadata
    rest = {key: value for key, value in metadata.items() if key != "name"}
    return {"name": metadata["name"], "namespace": executor.namespace, **rest}


def _pod_fields(executor: KubernetesExecutor) -> dict[str, Any]:
    security = {k: v for k, v in executor.security_context.items() if k not in CONTAINER_SECURITY}
    return {
        "serviceAccountName": executor.service_account,
        # ranks have no business with the API server, unless they are given an account for it
        "automountServiceAccountToken": None if executor.service_account else False,
        "enableServiceLinks": False,
        "securityContext": security,
        "hostNetwork": executor.host_network or None,
        "dnsPolicy": "ClusterFirstWithHostNet" if executor.host_network else None,
        "imagePullSecrets": [{"name": name} for name in executor.image_pull_secrets],
        "nodeSelector": dict(executor.node_selector),
        "tolerations": [_toleration(one) for one in executor.tolerations],
        "affinity": executor.affinity,
        "priorityClassName": executor.priority_class,
        "terminationGracePeriodSeconds": executor.grace_period,
    }


def _toleration(text: str | dict[str, Any]) -> dict[str, Any]:
    """`key[=value][:effect]`, as `kubectl taint` writes taints; or the mapping itself."""
    if not isinstance(text, str):
        return text
    taint, _, effect = text.partition(":")
    key, equals, value = taint.partition("=")
    made = {"key": key, "operator": "Equal", "value": value} if equals else {"key": key, "operator": "Exists"}
    return {**made, "effect": effect} if effect else made


def topology(executor: KubernetesExecutor) -> dict[str, str]:
    """Kueue's annotations of the pods."""
    made = {}
    for part in (executor.topology or "").split(",") if executor.topology else ():
        how, _, rest = part.partition(":")
        if how == "slice":
            label, _, size = rest.rpartition(":")
            made["kueue.x-k8s.io/podset-slice-required-topology"] = label
            made["kueue.x-k8s.io/podset-slice-size"] = size
        else:
            made[f"kueue.x-k8s.io/podset-{how}-topology"] = rest or "true"
    return made


# --- the container


def _container(
    executor: KubernetesExecutor,
    job: JobSpec,
    name: str,
    host: str,
    env: Mapping[str, str],
    mounts: list[dict[str, Any]],
) -> dict[str, Any]:
    made: dict[str, Any] = {"name": name, "image": executor.image}
    if executor.image_pull_policy:
        made["imagePullPolicy"] = executor.image_pull_policy
    if is_bare(executor, job):
        made["command"] = _command(executor, job)
        made |= {"workingDir": executor.workdir} if executor.workdir else {}
    else:
        made |= {"command": ["sh", f"{HOME}/files/start.sh"], "args": _arguments(executor, job)}
    variables = {**environment(executor, job, host), **env}
    secret = object_name(job.token)
    env_list: list[dict[str, Any]] = [
        {"name": key, "value": _literal(value)} for key, value in variables.items() if key not in job.secrets
    ]
    env_list += (
        {"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}} for key in job.secrets
    )
    if env_list:
        made["env"] = env_list
    if executor.env_from_secrets:
        made["envFrom"] = [{"secretRef": {"name": source}} for source in executor.env_from_secrets]
    if resources := container_resources(executor, job.resources.gpus_per_node):
        made["resources"] = resources
    own = {k: v for k, v in executor.security_context.items() if k in CONTAINER_SECURITY}
    if own:
        made["securityContext"] = own
    if mounts:
        made["volumeMounts"] = mounts
    return made


def container_resources(executor: KubernetesExecutor, gpus: int) -> dict[str, Any]:
    """GPUs and memory as limits, which are what is asked for, too; of CPUs a pod may use more."""
    limits: dict[str, Any] = {}
    if gpus:
        limits[executor.gpu_resource] = gpus
    if executor.memory is not None:
        limits["memory"] = executor.memory
    limits |= executor.extended_resources
    requests = {} if executor.cpus is None else {"cpu": executor.cpus}
    return {key: value for key, value in (("requests", requests), ("limits", limits)) if value}


def _arguments(executor: KubernetesExecutor, job: JobSpec) -> list[str]:
    """What `nemorun.worker` takes."""
    if job.task is not None:
        return [f"{run_dir(executor, job)}/task.yaml"]
    return ["--command", "--", *_command(executor, job)]


def _command(executor: KubernetesExecutor, job: JobSpec) -> list[str]:
    """With the image's Python in place of the launcher's."""
    first, *words = job.command or ()
    words = ["python3" if first == sys.executable else first, *words]
    return [_literal(_there(executor, job, word)) for word in words]


def _there(executor: KubernetesExecutor, job: JobSpec, word: str) -> str:
    """A path of the frozen code, as it is called in the pod; any other word as it is."""
    code = code_folder(executor, job)
    within = inside(word, job.code_root) if word.startswith("/") else None
    return word if within is None or code is None else str(PurePosixPath(code, within))


def _literal(text: str) -> str:
    """Kubernetes puts variables in for `$(NAME)`, and takes `$$` for `$`: say that none is meant."""
    return re.sub(r"\$(?=[$(])", "$$", text)


# --- its volumes


def _volumes(executor: KubernetesExecutor, job: JobSpec) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A pod's volumes, and where its container mounts them."""
    found: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []

    def add(name: str, source: dict[str, Any], path: str, read_only: bool = False) -> None:
        found.append({"name": name, **source})
        mounts.append({"name": name, "mountPath": path} | ({"readOnly": True} if read_only else {}))

    for name, mount in volumes.named(volumes.parse(executor.volumes)):
        add(name, mount.source, mount.path, mount.read_only)
    if not is_bare(executor, job):
        add("nemorun", {"emptyDir": {}}, HOME)
        add("nemorun-files", {"configMap": {"name": parent_name(job)}}, f"{HOME}/files", True)
        if job.code and executor.code == "configmap":
            add("nemorun-code", {"configMap": {"name": code_name(job)}}, f"{HOME}/archive", True)
    if executor.shm_size != "0":
        # the 64 MiB that a container has otherwise are too little for data loaders and NCCL
        size = {} if executor.shm_size is None else {"sizeLimit": executor.shm_size}
        add("shm", {"emptyDir": {"medium": "Memory", **size}}, "/dev/shm")
    return found, mounts
