"""Kubeflow's PyTorchJob (training operator v1): a master and workers, which are one node each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nemorun.executors.kubernetes.environment import port
from nemorun.executors.kubernetes.manifests import given, metadata, suspend
from nemorun.executors.kubernetes.names import object_name
from nemorun.executors.kubernetes.pods import template
from nemorun.job import JobSpec

if TYPE_CHECKING:
    from nemorun.executors.kubernetes.executor import KubernetesExecutor

#: With restartPolicy ExitCode, the operator starts a pod again that ends with this one: it is the user's.
EXIT_RESUME = 138


def workload(executor: KubernetesExecutor, job: JobSpec) -> dict[str, Any]:
    limit = job.retries if executor.backoff_limit is None else executor.backoff_limit
    policy = {
        "cleanPodPolicy": "Running",
        **suspend(executor, job),
        **given(
            activeDeadlineSeconds=executor.active_deadline,
            ttlSecondsAfterFinished=executor.ttl_after_finished,
        ),
        "backoffLimit": limit,
    }
    restart = "OnFailure" if limit else "ExitCode" if job.resumable else "Never"
    replicas = {"Master": 1, "Worker": job.resources.nodes - 1}
    specs = {
        role: {"replicas": count, "restartPolicy": restart, "template": _pod(executor, job)}
        for role, count in replicas.items()
        if count
    }
    spec = {"runPolicy": policy, "pytorchReplicaSpecs": specs}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": metadata(executor, job),
        "spec": spec,
    }


def _pod(executor: KubernetesExecutor, job: JobSpec) -> dict[str, Any]:
    pod = template(
        executor,
        job,
        container="pytorch",
        host=f"{object_name(job.token)}-master-0",
        env={"NEMORUN_EXIT_RESUME": str(EXIT_RESUME)} if job.resumable else {},
    )
    container = pod["spec"]["containers"][0]
    container.setdefault("ports", [{"name": "pytorchjob-port", "containerPort": port(executor, job)}])
    return pod
