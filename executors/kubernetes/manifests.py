"""Renders jobs to the objects that the API server gets. Pure: the same jobs give the same text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemorun.executors.base import Rendered
from nemorun.executors.kubernetes.environment import is_bare
from nemorun.executors.kubernetes.names import file_prefix, labels, object_name, parent_labels, parent_name
from nemorun.executors.kubernetes.pods import placed, template
from nemorun.executors.kubernetes.starter import starter_of
from nemorun.executors.kubernetes.workloads import switched
from nemorun.job import EXIT_RESUME, JobSpec

if TYPE_CHECKING:
    from nemorun.executors.kubernetes.executor import KubernetesExecutor

#: An object as the API server takes it.
Manifest = dict[str, Any]

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
#: Stands for the value of a secret, which is sent but never shown.
WITHHELD = "<its value at submission>"
#: Annotations of a task that waits for others of its experiment: their objects' names, and its own queue.
AFTER, QUEUE = "nemorun/after", "nemorun/queue"


@dataclass(frozen=True)
class Task:
    """One task's objects, in the order in which they are created."""

    name: str
    objects: tuple[Manifest, ...]
    """The workload comes last: what it needs is there before."""

    @property
    def workload(self) -> Manifest:
        return self.objects[-1]


@dataclass(frozen=True)
class KubernetesRendered(Rendered):
    """`text` is all of it as YAML documents, as `kubectl apply -f` takes them: the parent first.

    The submission adds what only it knows: the owner of all else (the parent's uid), the values of secrets,
    a ConfigMap with each frozen code, and in the parent nemorun itself and the tasks' files (`task_files`).
    """

    executors: tuple[KubernetesExecutor, ...]
    """Of each job its own."""
    parent: Manifest
    """The ConfigMap that owns all else."""
    tasks: tuple[Task, ...]
    starter: Manifest | None = None
    """The Job that starts tasks which wait for others, where an account for it is named."""

    @property
    def owned(self) -> tuple[Manifest, ...]:
        """All but the parent, in the order in which they are created."""
        last = () if self.starter is None else (self.starter,)
        return (*(one for task in self.tasks for one in task.objects), *last)


def render(jobs: Sequence[tuple[KubernetesExecutor, JobSpec]]) -> KubernetesRendered:
    """The objects of one submission."""
    tasks = tuple(Task(job.name, tuple(_objects(executor, job))) for executor, job in jobs)
    starter = starter_of(jobs)
    parent = _parent(jobs, bare=starter is None and all(is_bare(*pair) for pair in jobs))
    executors, plain = zip(*jobs, strict=True)
    made = KubernetesRendered("kubernetes", "", plain, executors, parent, tasks, starter)
    return replace(made, text=to_yaml([parent, *made.owned]))


def _parent(jobs: Sequence[tuple[KubernetesExecutor, JobSpec]], bare: bool) -> Manifest:
    executor, job = jobs[0]
    metadata = {"name": parent_name(job), "labels": parent_labels(job)}
    made: Manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": placed(executor, metadata)}
    if not bare:
        made["data"] = {"start.sh": Path(__file__).with_name("start.sh").read_text()}
    return made


def task_files(jobs: Sequence[JobSpec]) -> dict[str, str]:
    """Key in the parent -> text of each file that the tasks' records hold for the pods: YAML and sources."""
    found = {}
    for job in jobs:
        for path in sorted(Path(job.run_dir).glob("*")) if job.task else ():
            if path.is_file() and path.name not in ("job.json", "executor.yaml", "result.json"):
                found[f"{file_prefix(job.token)}.{path.name}"] = path.read_text(encoding="utf-8")
    return found


def _objects(executor: KubernetesExecutor, job: JobSpec) -> list[Manifest]:
    """What a task needs, and at last the workload itself."""
    needed = [_secret(executor, job)] if job.secrets else []
    if executor.kind == "job":
        needed += [_service(executor, job)] if job.resources.nodes > 1 else []
        return [*needed, _job(executor, job)]
    kind = import_module(f"nemorun.executors.kubernetes.{executor.kind}")
    return [*needed, kind.workload(executor, job)]


def _secret(executor: KubernetesExecutor, job: JobSpec) -> Manifest:
    """The submission puts the values in."""
    own = placed(executor, {"name": object_name(job.token), "labels": {**labels(job), **executor.labels}})
    values = dict.fromkeys(job.secrets, WITHHELD)
    return {"apiVersion": "v1", "kind": "Secret", "metadata": own, "type": "Opaque", "stringData": values}


# --- what the kinds share


def metadata(executor: KubernetesExecutor, job: JobSpec) -> dict[str, Any]:
    """Of a task's object."""
    own = {**labels(job), **executor.labels}
    annotations = dict(executor.annotations)
    if executor.queue and job.dependencies:
        annotations[QUEUE] = executor.queue  # until it may start, it is none of Kueue's business
    elif executor.queue:
        own[QUEUE_LABEL] = executor.queue
    if job.dependencies:
        experiment = job.token.partition(".")[0]
        annotations[AFTER] = ",".join(object_name(f"{experiment}.{name}") for name in job.dependencies)
    made: dict[str, Any] = {"name": object_name(job.token), "labels": own}
    if annotations:
        made["annotations"] = annotations
    return placed(executor, made)


def suspend(executor: KubernetesExecutor, job: JobSpec) -> dict[str, Any]:
    """What waits for Kueue, or for other tasks, is created suspended."""
    return {"suspend": True} if executor.queue or job.dependencies else {}


def release_patch(workload: Manifest) -> Manifest:
    """The patch that lets a task start whose dependencies have succeeded."""
    if queue := workload["metadata"].get("annotations", {}).get(QUEUE):
        return {"metadata": {"labels": {QUEUE_LABEL: queue}}}
    return switched(workload, False)


def given(**fields: Any) -> dict[str, Any]:
    """Those that are set."""
    return {name: value for name, value in fields.items() if value is not None}


def job_spec(executor: KubernetesExecutor, job: JobSpec, pod: Manifest) -> dict[str, Any]:
    """A Job's spec: of several pods, each has its index."""
    nodes = job.resources.nodes
    indexed = {"completionMode": "Indexed", "completions": nodes, "parallelism": nodes} if nodes > 1 else {}
    limit = job.retries if executor.backoff_limit is None else executor.backoff_limit
    policy = {
        "rules": [
            # a pod that was evicted, or that has saved its state and asks to go on, costs no retry
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {
                "action": "Ignore",
                "onExitCodes": {
                    "containerName": pod["spec"]["containers"][0]["name"],
                    "operator": "In",
                    "values": [EXIT_RESUME],
                },
            },
        ]
    }
    return {**indexed, "backoffLimit": limit, "podFailurePolicy": policy, "template": pod}


# --- a Job


def _job(executor: KubernetesExecutor, job: JobSpec) -> Manifest:
    name = object_name(job.token)
    several = job.resources.nodes > 1
    pod = template(
        executor,
        job,
        host=f"{name}-0.{name}" if several else "localhost",
        subdomain=name if several else None,
        restartPolicy="Never",
    )
    limits = given(
        activeDeadlineSeconds=executor.active_deadline, ttlSecondsAfterFinished=executor.ttl_after_finished
    )
    spec = {**suspend(executor, job), **limits, **job_spec(executor, job, pod)}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata(executor, job), "spec": spec}


def _service(executor: KubernetesExecutor, job: JobSpec) -> Manifest:
    """Gives the pods of a Job names; pods that are not ready yet have to find each other, too."""
    name = object_name(job.token)
    own = placed(executor, {"name": name, "labels": {**labels(job), **executor.labels}})
    selector = {"app.kubernetes.io/instance": name, "app.kubernetes.io/managed-by": "nemorun"}
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": selector}
    return {"apiVersion": "v1", "kind": "Service", "metadata": own, "spec": spec}


# --- as text


def to_yaml(objects: Sequence[Manifest]) -> str:
    import yaml

    class Dumper(yaml.SafeDumper):
        """Texts of several lines as they are; nothing is written by reference to something above."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, data: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)

    Dumper.add_representer(str, text)
    documents = yaml.dump_all(
        objects, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=10**6, explicit_start=True
    )
    assert isinstance(documents, str)
    return documents
