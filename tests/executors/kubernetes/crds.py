"""The kinds of Kubeflow, JobSet and Kueue as CRDs, with the fields of their releases that a launcher may set.

Templates of pods are left open: what they hold is checked by itself.
"""

from __future__ import annotations

from typing import Any

_OPEN = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_TEXT, _NUMBER, _SWITCH = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
_TEXTS = {"type": "array", "items": _TEXT}
_MAP = {"type": "object", "additionalProperties": _TEXT}
_METADATA = {"type": "object", "properties": {"labels": _MAP, "annotations": _MAP}}


def _of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _list(of: Any) -> dict[str, Any]:
    return {"type": "array", "items": of}


def _one_of(*values: str) -> dict[str, Any]:
    return {"type": "string", "enum": [*values]}


def _crd(kind: str, group: str, version: str, spec: dict[str, Any]) -> dict[str, Any]:
    plural = f"{kind.lower()}s"
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
            "versions": [
                {
                    "name": version,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": _of(spec=spec, status=_OPEN)},
                }
            ],
        },
    }


_PYTORCHJOB = _of(
    nprocPerNode=_TEXT,
    elasticPolicy=_OPEN,
    runPolicy=_of(
        cleanPodPolicy=_one_of("All", "Running", "None"),
        ttlSecondsAfterFinished=_NUMBER,
        activeDeadlineSeconds=_NUMBER,
        backoffLimit=_NUMBER,
        schedulingPolicy=_OPEN,
        suspend=_SWITCH,
        managedBy=_TEXT,
    ),
    pytorchReplicaSpecs={
        "type": "object",
        "additionalProperties": _of(
            replicas=_NUMBER,
            restartPolicy=_one_of("Always", "OnFailure", "Never", "ExitCode"),
            template=_OPEN,
        ),
    },
)

_JOBSET = _of(
    replicatedJobs=_list(
        _of(name=_TEXT, replicas=_NUMBER, groupName=_TEXT, template=_of(metadata=_METADATA, spec=_OPEN))
    ),
    network=_of(enableDNSHostnames=_SWITCH, subdomain=_TEXT, publishNotReadyAddresses=_SWITCH),
    successPolicy=_OPEN,
    failurePolicy=_of(maxRestarts=_NUMBER, restartStrategy=_TEXT, rules=_list(_OPEN)),
    startupPolicy=_OPEN,
    coordinator=_OPEN,
    suspend=_SWITCH,
    managedBy=_TEXT,
    ttlSecondsAfterFinished=_NUMBER,
)

_CONTAINER = _of(name=_TEXT, env=_list(_OPEN), volumeMounts=_list(_OPEN), securityContext=_OPEN)
_POD = {
    "serviceAccountName": _TEXT,
    "volumes": _list(_OPEN),
    "initContainers": _list(_CONTAINER),
    "containers": _list(_CONTAINER),
    "imagePullSecrets": _list(_OPEN),
    "securityContext": _OPEN,
    "nodeSelector": _MAP,
    "affinity": _OPEN,
    "tolerations": _list(_OPEN),
    "schedulingGates": _list(_OPEN),
}
_TARGETS = _list(_of(name=_TEXT))
_TEMPLATE = _of(metadata=_METADATA, spec=_of(**_POD))
_TRAINJOB = _of(
    runtimeRef=_of(name=_TEXT, apiGroup=_TEXT, kind=_TEXT),
    initializer=_OPEN,
    trainer=_of(
        image=_TEXT,
        command=_TEXTS,
        args=_TEXTS,
        env=_list(_OPEN),
        numNodes=_NUMBER,
        resourcesPerNode=_OPEN,
        numProcPerNode={"x-kubernetes-int-or-string": True},
    ),
    suspend=_SWITCH,
    activeDeadlineSeconds=_NUMBER,
    managedBy=_TEXT,
    # 2.0, 2.1 and 2.2
    podSpecOverrides=_list(_of(targetJobs=_TARGETS, **_POD)),
    podTemplateOverrides=_list(_of(targetJobs=_TARGETS, metadata=_METADATA, spec=_of(**_POD))),
    runtimePatches=_list(
        _of(
            manager=_TEXT,
            trainingRuntimeSpec=_of(
                template=_of(
                    metadata=_METADATA,
                    spec=_of(
                        replicatedJobs=_list(
                            _of(
                                name=_TEXT,
                                template=_of(metadata=_METADATA, spec=_of(template=_TEMPLATE)),
                            )
                        )
                    ),
                )
            ),
        )
    ),
)

_LOCALQUEUE = _of(clusterQueue=_TEXT, stopPolicy=_one_of("None", "Hold", "HoldAndDrain"), fairSharing=_OPEN)
_WORKLOAD = _of(
    active=_SWITCH,
    queueName=_TEXT,
    podSets=_list(_of(name=_TEXT, count=_NUMBER, minCount=_NUMBER, template=_OPEN, topologyRequest=_OPEN)),
    priority=_NUMBER,
    priorityClassName=_TEXT,
    priorityClassSource=_TEXT,
    maximumExecutionTimeSeconds=_NUMBER,
)

CRDS = [
    _crd("PyTorchJob", "kubeflow.org", "v1", _PYTORCHJOB),
    _crd("JobSet", "jobset.x-k8s.io", "v1alpha2", _JOBSET),
    _crd("TrainJob", "trainer.kubeflow.org", "v1alpha1", _TRAINJOB),
    _crd("LocalQueue", "kueue.x-k8s.io", "v1beta1", _LOCALQUEUE),
    _crd("Workload", "kueue.x-k8s.io", "v1beta1", _WORKLOAD),
]
KINDS = {crd["spec"]["names"]["kind"] for crd in CRDS}
