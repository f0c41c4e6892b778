"""Kubeflow's TrainJob (Trainer v2): a runtime of the cluster, with our pods' fields over its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nemorun.executors.kubernetes.manifests import metadata, suspend
from nemorun.executors.kubernetes.names import object_name
from nemorun.executors.kubernetes.pods import template
from nemorun.job import JobSpec

if TYPE_CHECKING:
    from nemorun.executors.kubernetes.executor import KubernetesExecutor

#: What the runtimes call the pods that train, and their container.
NODE = "node"
_TRAINER = ("image", "command", "args", "env")


def workload(executor: KubernetesExecutor, job: JobSpec) -> dict[str, Any]:
    name, resources = object_name(job.token), job.resources
    pod = template(executor, job, container=NODE, host=f"{name}-{NODE}-0-0.{name}")
    container = pod["spec"]["containers"][0]
    trainer = {key: container.pop(key) for key in _TRAINER if key in container}
    trainer["numNodes"] = resources.nodes
    if "resources" in container:
        trainer["resourcesPerNode"] = container.pop("resources")
    # our own supervisor starts the ranks: the runtime's torchrun variables are for one process a pod
    trainer["numProcPerNode"] = 1
    spec = {
        "runtimeRef": {
            "apiGroup": "trainer.kubeflow.org",
            "kind": "ClusterTrainingRuntime",
            "name": executor.runtime,
        },
        **suspend(executor, job),
        "trainer": trainer,
        **_over(executor, pod),
    }
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": metadata(executor, job),
        "spec": spec,
    }


def _over(executor: KubernetesExecutor, pod: dict[str, Any]) -> dict[str, Any]:
    """The rest of the pod, in the field that the installed release has for it."""
    field = executor.runtime_patch
    if field == "podSpecOverrides":
        return {field: [{"targetJobs": [{"name": NODE}], **pod["spec"]}]}
    if field == "podTemplateOverrides":
        return {field: [{"targetJobs": [{"name": NODE}], **pod}]}
    patch = {"spec": {"replicatedJobs": [{"name": NODE, "template": {"spec": {"template": pod}}}]}}
    return {field: [{"manager": "nemorun", "trainingRuntimeSpec": {"template": patch}}]}
