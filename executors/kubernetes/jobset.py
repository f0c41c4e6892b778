"""A JobSet with one replicated Job, whose pods are the nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nemorun.executors.kubernetes.manifests import given, job_spec, metadata, suspend
from nemorun.executors.kubernetes.names import object_name
from nemorun.executors.kubernetes.pods import template
from nemorun.job import JobSpec

if TYPE_CHECKING:
    from nemorun.executors.kubernetes.executor import KubernetesExecutor


def workload(executor: KubernetesExecutor, job: JobSpec) -> dict[str, Any]:
    name, nodes = object_name(job.token), job.resources.nodes
    pod = template(executor, job, host=f"{name}-node-0-0.{name}", restartPolicy="Never")
    own = {
        **given(activeDeadlineSeconds=executor.active_deadline),
        **job_spec(executor, job, pod),
        # always by index: pods have their names from it
        **{"completionMode": "Indexed", "completions": nodes, "parallelism": nodes},
    }
    spec = {
        **suspend(executor, job),
        **given(ttlSecondsAfterFinished=executor.ttl_after_finished),
        "network": {"enableDNSHostnames": True, "subdomain": name, "publishNotReadyAddresses": True},
        # the Job starts its pods again by itself
        "failurePolicy": {"maxRestarts": 0},
        "replicatedJobs": [{"name": "node", "replicas": 1, "template": {"spec": own}}],
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata(executor, job),
        "spec": spec,
    }
