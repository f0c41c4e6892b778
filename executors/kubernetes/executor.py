"""The Kubernetes executor's fields, and where each of its methods is written."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from nemorun.errors import ConfigError
from nemorun.executors.base import Check, Executor, LogChunk, LogOffsets, Rendered
from nemorun.job import JobRef, JobSpec, JobStatus, Resources

if TYPE_CHECKING:
    from nemorun.executors.kubernetes.manifests import KubernetesRendered


@dataclass
class KubernetesExecutor(Executor):
    """Runs tasks on a Kubernetes cluster."""

    type: ClassVar[str] = "kubernetes"
    pace: ClassVar[tuple[float, float]] = (0.5, 5.0)

    namespace: str | None = None
    """Namespace; by default the context's."""
    context: str | None = None
    """Context of the kubeconfig; by default its current one. Without a kubeconfig: the pod's own account."""
    kubeconfig: str | None = None
    """Another file than $KUBECONFIG or ~/.kube/config."""
    kind: Literal["job", "pytorchjob", "jobset", "trainjob"] = "job"
    """What a task becomes: a Job (needs nothing installed), or an object of Kubeflow or JobSet."""
    runtime: str = "torch-distributed"
    """Of a TrainJob: the name of its ClusterTrainingRuntime."""
    runtime_patch: Literal["podTemplateOverrides", "podSpecOverrides", "runtimePatches"] = (
        "podTemplateOverrides"
    )
    """Of a TrainJob: the field that changes its pods; Trainer 2.1, 2.0 and from 2.2 on call it so."""

    image: str | None = None
    """Image that the ranks run in, such as nvcr.io/nvidia/nemo:24.05; it needs sh, tar, gzip and python3."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When to pull the image; by default Always for :latest, else IfNotPresent."""
    image_pull_secrets: list[str] = field(default_factory=list)
    """Secrets with the registry's credentials."""
    container_name: str | None = None
    """Name of the container; by default nemo. PyTorchJob and TrainJob prescribe theirs."""

    nodes: int | None = None
    """Pods; by default the task's nodes."""
    ntasks_per_node: int | None = None
    """Ranks in each pod; by default the task's."""
    num_gpus: int | None = None
    """GPUs of each pod; by default the task's."""
    gpu_resource: str = "nvidia.com/gpu"
    """What the cluster calls a GPU."""
    cpus: int | float | str | None = None
    """CPUs that each pod asks for: 8, 0.5 or "500m"; it may use more where the node has them."""
    memory: str | None = None
    """Memory that each pod asks for, and may use at most, such as "64Gi"."""
    shm_size: str | None = None
    """Limit of /dev/shm, such as "16Gi"; by default the pod's memory. It counts as memory of the pod."""
    extended_resources: dict[str, int | str] = field(default_factory=dict)
    """Other resources of each pod, such as {"rdma/hca_shared_devices_a": 1}."""

    env_from_secrets: list[str] = field(default_factory=list)
    """Secrets of the namespace whose keys become variables of every rank."""
    volumes: list[str] = field(default_factory=list)
    """Mounts: "pvc:CLAIM:/data", "hostpath:/x:/y:ro", "emptydir:/scratch", "nfs:SERVER:/path:/mnt" …"""
    run_dir: str | None = None
    """Folder on one of the volumes for checkpoints and results; without one, they end with their pod."""
    code: Literal["configmap", "pvc", "image"] = "configmap"
    """How the frozen code gets there: in a ConfigMap (up to 1 MB), through run_dir, or the image has it."""
    workdir: str | None = None
    """Folder that ranks start in; by default the frozen code's, or the image's own."""

    node_selector: dict[str, str] = field(default_factory=dict)
    """Labels that nodes must have."""
    tolerations: list[str | dict[str, Any]] = field(default_factory=list)
    """Taints that are no hindrance, as kubectl writes them ("gpu=present:NoSchedule"), or as a mapping."""
    affinity: dict[str, Any] = field(default_factory=dict)
    """A pod's `affinity`."""
    priority_class: str | None = None
    """PriorityClass of the pods."""
    queue: str | None = None
    """Kueue's LocalQueue: all pods start together, when there is room for them."""
    topology: str | None = None
    """How near pods are, by Kueue: "required:LABEL", "preferred:LABEL", "unconstrained", "slice:LABEL:N"."""

    service_account: str | None = None
    """Service account of the pods."""
    starter_account: str | None = None
    """Service account of a small pod that starts tasks which wait for others, so that nobody has to ask."""
    security_context: dict[str, Any] = field(default_factory=dict)
    """Such as {"runAsUser": 1000, "fsGroup": 1000}; each key goes to the pod or to the container."""
    host_network: bool = False
    """Do pods use their node's network?"""
    labels: dict[str, str] = field(default_factory=dict)
    """Further labels of all objects and pods."""
    annotations: dict[str, str] = field(default_factory=dict)
    """Further annotations of all objects and pods."""
    pod_overrides: dict[str, Any] = field(default_factory=dict)
    """Anything else: {"metadata": …, "spec": …}, merged into the pods as `kubectl patch` does."""

    backoff_limit: int | None = None
    """Failed pods after which a task has failed; by default as many as `retries` attempts have."""
    active_deadline: int | None = None
    """Seconds after which a task is ended, all attempts together."""
    ttl_after_finished: int | None = None
    """Seconds after which an ended task's workload and pods are deleted; by default when you delete them."""
    grace_period: int = 60
    """Seconds that ranks have between SIGTERM and SIGKILL, to save their state."""
    start_timeout: int = 1800
    """Seconds that a pod waits for the other ones."""

    def place(self) -> Hashable:
        return ("kubernetes", self.kubeconfig, self.context, self.namespace)

    def validate(self) -> None:
        from nemorun.executors.kubernetes.validation import check_fields

        check_fields(self)

    def check_job(self, job: JobSpec) -> None:
        from nemorun.executors.kubernetes.validation import check_job

        check_job(self, job)

    def resources(self, wanted: Resources | None) -> Resources:
        from nemorun.executors.kubernetes.validation import resources

        return resources(self, wanted)

    def render(
        self, jobs: Sequence[JobSpec], own: Mapping[str, Executor] = MappingProxyType({})
    ) -> KubernetesRendered:
        from nemorun.executors.kubernetes.manifests import render

        pairs = []
        for job in jobs:
            executor = own.get(job.name, self)
            if not isinstance(executor, KubernetesExecutor):
                raise ConfigError(
                    f"task '{job.name}': its executor is {executor!r}, which is not Kubernetes'"
                )
            pairs.append((executor, job))
        return render(pairs)

    def submit(self, rendered: Rendered, secrets: Mapping[str, str]) -> dict[str, str]:
        from nemorun.executors.kubernetes.submission import submit

        return submit(self, rendered, secrets)

    def poll(self, refs: Sequence[JobRef]) -> dict[str, JobStatus]:
        from nemorun.executors.kubernetes.polling import poll

        return poll(self, refs)

    def logs(
        self, reading: Mapping[JobRef, LogOffsets], rank: int | None = None
    ) -> Iterable[tuple[JobRef, LogChunk]]:
        from nemorun.executors.kubernetes.reading import logs

        return logs(self, reading, rank)

    def excerpt(self, ref: JobRef) -> str:
        from nemorun.executors.kubernetes.reading import excerpt

        return excerpt(self, ref)

    def cancel(self, refs: Sequence[JobRef]) -> None:
        from nemorun.executors.kubernetes.cancelling import cancel

        cancel(self, refs)

    def suspend(self, refs: Sequence[JobRef]) -> None:
        from nemorun.executors.kubernetes.suspending import suspend

        suspend(self, refs)

    def resume(self, refs: Sequence[JobRef]) -> None:
        from nemorun.executors.kubernetes.suspending import resume

        resume(self, refs)

    def check(self) -> list[Check]:
        from nemorun.executors.kubernetes.checks import check

        return check(self)

    def shell(self, rendered: Rendered, secrets: Mapping[str, str]) -> int:
        from nemorun.executors.kubernetes.interactive import shell

        return shell(self, rendered, secrets)

    def debug(self, rendered: Rendered, secrets: Mapping[str, str], again: str) -> int:
        from nemorun.executors.kubernetes.interactive import debug

        return debug()

    def release(self, token: str) -> list[str]:
        return []  # nothing is ever kept

    def attach(self, ref: JobRef, job: JobSpec, rank: int) -> int:
        from nemorun.executors.kubernetes.interactive import attach

        return attach(self, ref, job, rank)
