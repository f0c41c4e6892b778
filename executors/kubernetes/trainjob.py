"""Kubeflow's TrainJob (Trainer v2): a runtime of the cluster, with our pods' fields over its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nemorun.executors.kubernetes.manifests import given, metadata, suspend
from nemorun.executors.kubernetes.names import object_name
from nemorun.executors.kubernetes.pods import template
from nemorun.job import JobSpec

if TYPE_CHECKING:
    from nemorun.executors.kubernetes.executor import KubernetesExecutor

#: What the runtimes call the pods that train, and their container.
NODE = "node"
#: All that a TrainJob may say of its runtime's pods.
POD_FIELDS = (
    *("serviceAccountName", "volumes", "initContainers", "containers", "imagePullSecrets"),
    *("securityContext", "nodeSelector", "affinity", "tolerations", "schedulingGates"),
)
_CONTAINER_FIELDS = ("name", "volumeMounts", "securityContext")
_TRAINER = ("image", "command", "args", "env")


def workload(executor: KubernetesExecutor, job: JobSpec) -> dict[str, Any]:
    name = object_name(job.token)
    pod = template(executor, job, container=NODE, host=f"{name}-{NODE}-0-0.{name}")
    container = pod["spec"]["containers"][0]
    spec = {
        "runtimeRef": {
            "apiGroup": "trainer.kubeflow.org",
            "kind": "ClusterTrainingRuntime",
            "name": executor.runtime,
        },
        **suspend(executor, job),
        **given(activeDeadlineSeconds=executor.active_deadline),
        "trainer": {
            **{key: container[key] for key in _TRAINER if key in container},
            "numNodes": job.resources.nodes,
            # our own supervisor starts the ranks: the runtime's variables are for one process a pod
            "numProcPerNode": 1,
            **given(resourcesPerNode=container.get("resources")),
        },
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
    spec = {key: pod["spec"][key] for key in POD_FIELDS if key in pod["spec"]}
    first, *others = spec["containers"]
    spec["containers"] = [{key: first[key] for key in _CONTAINER_FIELDS if key in first}, *others]
    target, field = {"targetJobs": [{"name": NODE}]}, executor.runtime_patch
    if field == "podSpecOverrides":
        return {field: [{**target, **spec}]}
    pod = {"metadata": pod["metadata"], "spec": spec}
    if field == "podTemplateOverrides":
        return {field: [{**target, **pod}]}
    patch = {"spec": {"replicatedJobs": [{"name": NODE, "template": {"spec": {"template": pod}}}]}}
    return {field: [{"manager": "nemorun", "trainingRuntimeSpec": {"template": patch}}]}
