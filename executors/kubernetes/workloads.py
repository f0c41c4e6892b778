"""What nemorun reads of a workload: a Job, PyTorchJob, JobSet or TrainJob. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nemorun.executors.kubernetes.reasons import Object, condition, timestamp
from nemorun.job import JobRef

#: As a handle begins -> API version and kind.
KINDS = {
    "job": ("batch/v1", "Job"),
    "pytorchjob": ("kubeflow.org/v1", "PyTorchJob"),
    "jobset": ("jobset.x-k8s.io/v1alpha2", "JobSet"),
    "trainjob": ("trainer.kubeflow.org/v1alpha1", "TrainJob"),
}
SUCCEEDED, FAILED = ("Complete", "Completed", "Succeeded"), ("Failed",)

_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_AFTER = "nemorun/after"
#: Annotation of a workload that a user has suspended.
_HELD = "nemorun/held"


def kind_of(ref: JobRef, usual: str) -> str:
    """Which of KINDS it is, as its handle says; without one, as it would be submitted."""
    return ref.handle.partition("/")[0] if ref.handle else usual


def finished(workload: Object, kinds: Iterable[str] = (*SUCCEEDED, *FAILED)) -> Object:
    """The condition that says so, or nothing."""
    return next((found for kind in kinds if (found := condition(workload, kind))), {})


def end_of(workload: Object, condition: Object) -> float | None:
    status = workload.get("status") or {}
    return timestamp(status.get("completionTime") or condition.get("lastTransitionTime"))


def pods_wanted(workload: Object) -> int:
    """How many pods run at once when all do."""
    spec = workload.get("spec") or {}
    if replicas := spec.get("pytorchReplicaSpecs"):
        return sum(int(one.get("replicas", 1)) for one in replicas.values())
    if jobs := spec.get("replicatedJobs"):
        each = ((one.get("replicas", 1), one["template"].get("spec", {})) for one in jobs)
        return sum(int(replicas) * int(job.get("parallelism", 1)) for replicas, job in each)
    if "runtimeRef" in spec:
        return int((spec.get("trainer") or {}).get("numNodes") or 1)
    return int(spec.get("parallelism") or 1)


def pod_specs(workload: object) -> Iterator[Object]:
    """The specs of its pods, wherever its kind has them."""
    if isinstance(workload, dict):
        if "containers" in workload:
            yield workload
        for value in workload.values():
            yield from pod_specs(value)
    elif isinstance(workload, list):
        for value in workload:
            yield from pod_specs(value)


def is_suspended(workload: Object) -> bool:
    spec = workload.get("spec") or {}
    return bool(spec.get("suspend") or (spec.get("runPolicy") or {}).get("suspend"))


def queue_of(workload: Object) -> str | None:
    """The queue of Kueue that it waits in."""
    labels = workload["metadata"].get("labels") or {}
    queue = labels.get(_QUEUE_LABEL)
    return None if queue is None else str(queue)


def time_to_live(workload: Object) -> float:
    """Seconds that it stays after its end."""
    spec = workload.get("spec") or {}
    ttl = spec.get("ttlSecondsAfterFinished", (spec.get("runPolicy") or {}).get("ttlSecondsAfterFinished"))
    return float("inf") if ttl is None else float(ttl)


def waits_for(workload: Object) -> list[str]:
    """Names of the workloads that must have succeeded before this one may start; none once it was let go."""
    if not is_suspended(workload) or queue_of(workload) is not None:
        return []
    annotations = workload["metadata"].get("annotations") or {}
    return [name.strip() for name in annotations.get(_AFTER, "").split(",") if name.strip()]


def without_waiting(patch: Object) -> Object:
    """A patch that lets a workload go, and that is not to be done twice: somebody may suspend it again."""
    metadata = patch.get("metadata") or {}
    annotations = {**(metadata.get("annotations") or {}), _AFTER: None}
    return {**patch, "metadata": {**metadata, "annotations": annotations}}


def held(workload: Object) -> bool:
    """Has a user suspended it?"""
    return _HELD in (workload["metadata"].get("annotations") or {})


def with_hold(patch: Object, on: bool) -> Object:
    """The patch, which also notes that a user has suspended the workload, or does so no more."""
    return {**patch, "metadata": {"annotations": {_HELD: "true" if on else None}}}


def switched(workload: Object, off: bool) -> Object:
    """The patch that suspends it, or lets it go on."""
    spec = {"suspend": off}
    return {"spec": {"runPolicy": spec} if workload["kind"] == "PyTorchJob" else spec}
