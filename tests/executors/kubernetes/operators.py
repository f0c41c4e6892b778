"""Stands in for the operators of PyTorchJob, JobSet and TrainJob, of which the rig has none.

It makes of these objects the Pods, Jobs and Services that their operators are documented to make, on a real
API server, so that the commands of our manifests really run in pods:

- Kubeflow's training operator 1.8: a pod for each replica with MASTER_ADDR, RANK and the like, a headless
  Service for the master, restarts of pods that end with a code from 128 on where the policy is ExitCode.
- JobSet 0.8: a Job for each replicated Job, and a headless Service that gives their pods names.
- Kubeflow Trainer 2.1 with its runtime `torch-distributed`: a JobSet, with the TrainJob's fields in it.

It does no more than that: no validation, no gangs, no restart of a whole JobSet.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

from nemorun.executors.kubernetes.api import Api
from nemorun.executors.kubernetes.overrides import merge
from nemorun.executors.kubernetes.refusals import ApiError
from nemorun.executors.kubernetes.workloads import KINDS, finished

Object = dict[str, Any]
_OPERATOR = "training.kubeflow.org"
_JOBSET = "jobset.sigs.k8s.io"
_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


@contextlib.contextmanager
def operators(api: Api) -> Iterator[None]:
    """At work in the namespace of `api`."""
    over = threading.Event()
    standing = threading.Thread(target=_reconcile, args=(api, over))
    standing.start()
    try:
        yield
    finally:
        over.set()
        standing.join()


def _reconcile(api: Api, over: threading.Event) -> None:
    act = {"PyTorchJob": _pytorchjob, "TrainJob": _trainjob, "JobSet": _jobset}
    while not over.wait(0.1):
        for kind, (version, name) in KINDS.items():
            if kind == "job":
                continue
            for one in api.get(api.path(name, api_version=version))["items"]:
                one |= {"apiVersion": version, "kind": name}
                with contextlib.suppress(ApiError):  # deleted meanwhile, say: it is looked at again
                    if not finished(one) and "deletionTimestamp" not in one["metadata"]:
                        act[name](api, one)


def _owned(owner: Object, kind: str, version: str, name: str, **rest: Any) -> Object:
    of = {key: owner[key] for key in ("apiVersion", "kind")} | {"controller": True}
    of |= {key: owner["metadata"][key] for key in ("name", "uid")}
    metadata = {"name": name, "ownerReferences": [of], **rest.pop("metadata", {})}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **rest}


def _say(api: Api, one: Object, kind: str, message: str = "") -> None:
    """Set a condition, once."""
    conditions = (one.get("status") or {}).get("conditions") or []
    if not any(found["type"] == kind for found in conditions):
        at = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        new = {"type": kind, "status": "True", "message": message, "lastTransitionTime": at}
        api.patch(api.path_to(one), {"status": {"conditions": [*conditions, new]}})


def _headless(owner: Object, name: str, selector: dict[str, str], **spec: Any) -> Object:
    return _owned(owner, "Service", "v1", name, spec={"clusterIP": "None", "selector": selector, **spec})


# --- Kubeflow's training operator


def _pytorchjob(api: Api, one: Object) -> None:
    name, spec = one["metadata"]["name"], one["spec"]
    replicas = {role: int(own.get("replicas", 1)) for role, own in spec["pytorchReplicaSpecs"].items()}
    labels = {f"{_OPERATOR}/job-name": name, f"{_OPERATOR}/operator-name": "pytorchjob-controller"}
    pods = {
        pod["metadata"]["name"]: pod
        for pod in api.get(api.path("Pod"), labelSelector=f"{_OPERATOR}/job-name={name}")["items"]
    }
    if spec["runPolicy"].get("suspend"):
        for pod in pods:
            api.delete(api.path("Pod", pod))
        return
    master = {**labels, f"{_OPERATOR}/replica-type": "master"}
    api.create(_headless(one, f"{name}-master-0", master))
    for role, own in spec["pytorchReplicaSpecs"].items():
        for index in range(replicas[role]):
            pod = pods.get(f"{name}-{role.lower()}-{index}")
            if pod is None:
                api.create(_replica(one, labels, own, role, index, sum(replicas.values())))
                continue
            phase = pod["status"].get("phase")
            if "deletionTimestamp" in pod["metadata"]:
                continue
            if phase == "Failed":
                _replica_failed(api, one, own, pod)
            elif phase == "Succeeded" and role == "Master":
                _say(api, one, "Succeeded")


def _replica(one: Object, labels: dict[str, str], own: Object, role: str, index: int, all_: int) -> Object:
    name = one["metadata"]["name"]
    pod = copy.deepcopy(own["template"])
    port = next(
        port["containerPort"]
        for port in pod["spec"]["containers"][0]["ports"]
        if port["name"] == "pytorchjob-port"
    )
    rank = index + (role == "Worker")
    told = {
        "PYTHONUNBUFFERED": "1",
        **{"MASTER_PORT": port, "PET_MASTER_PORT": port},
        **{"MASTER_ADDR": f"{name}-master-0", "PET_MASTER_ADDR": f"{name}-master-0"},
        **{"WORLD_SIZE": all_, "RANK": rank},
        **{"PET_NNODES": all_, "PET_NODE_RANK": rank, "PET_NPROC_PER_NODE": "auto"},
    }
    for container in pod["spec"]["containers"]:
        assert container["name"] == "pytorch"
        container["env"] = [
            *container.get("env", ()),
            *({"name": key, "value": str(value)} for key, value in told.items()),
        ]
    policy = own["restartPolicy"]
    pod["spec"]["restartPolicy"] = "Never" if policy == "ExitCode" else policy
    pod["metadata"].setdefault("labels", {}).update(
        {
            **labels,
            f"{_OPERATOR}/replica-type": role.lower(),
            f"{_OPERATOR}/replica-index": str(index),
            **({f"{_OPERATOR}/job-role": "master"} if role == "Master" else {}),
        }
    )
    made = f"{name}-{role.lower()}-{index}"
    return _owned(one, "Pod", "v1", made, metadata=pod["metadata"], spec=pod["spec"])


def _replica_failed(api: Api, one: Object, own: Object, pod: Object) -> None:
    state = (pod["status"].get("containerStatuses") or [{"state": {}}])[0]["state"]
    code = state.get("terminated", {}).get("exitCode", 0xBEEF)  # so the operator takes what it cannot see
    if own["restartPolicy"] == "ExitCode" and code >= 128:
        api.delete(api.path("Pod", pod["metadata"]["name"]))
    else:
        _say(api, one, "Failed", f"PyTorchJob {one['metadata']['name']} is failed")


# --- JobSet


def _jobset(api: Api, one: Object) -> None:
    name, spec = one["metadata"]["name"], one["spec"]
    network = spec.get("network") or {}
    service = network.get("subdomain") or name
    if network.get("enableDNSHostnames", True):
        ready = network.get("publishNotReadyAddresses", True)
        api.create(_headless(one, service, {f"{_JOBSET}/jobset-name": name}, publishNotReadyAddresses=ready))
    jobs = []
    for replicated in spec["replicatedJobs"]:
        for index in range(int(replicated.get("replicas", 1))):
            wanted = _replicated(one, replicated, index, service)
            made = api.create(wanted)
            if bool(made["spec"].get("suspend")) is not bool(spec.get("suspend")):
                api.patch(api.path_to(wanted), {"spec": {"suspend": bool(spec.get("suspend"))}})
            jobs.append(made)
    if any(finished(job, ["Failed"]) for job in jobs):
        _say(api, one, "Failed", f"jobset failed due to one or more job failures: {name}")
    elif all(finished(job, ["Complete"]) for job in jobs):
        _say(api, one, "Completed", "jobset completed successfully")


def _replicated(one: Object, replicated: Object, index: int, service: str) -> Object:
    name = f"{one['metadata']['name']}-{replicated['name']}-{index}"
    marks = {
        f"{_JOBSET}/jobset-name": one["metadata"]["name"],
        f"{_JOBSET}/replicatedjob-name": replicated["name"],
        f"{_JOBSET}/job-index": str(index),
    }
    job = copy.deepcopy(replicated["template"])
    pod = job["spec"]["template"]
    pod.setdefault("metadata", {}).setdefault("labels", {}).update(marks)
    pod["metadata"].setdefault("annotations", {}).update(marks)
    pod["spec"].setdefault("restartPolicy", "OnFailure")
    pod["spec"]["subdomain"] = service
    job["spec"] |= {"completionMode": "Indexed", "suspend": bool(one["spec"].get("suspend"))}
    return _owned(one, "Job", "batch/v1", name, metadata={"labels": marks}, spec=job["spec"])


# --- Kubeflow Trainer


def _trainjob(api: Api, one: Object) -> None:
    name, spec = one["metadata"]["name"], one["spec"]
    assert spec["runtimeRef"]["name"] == "torch-distributed"
    wanted = _owned(one, "JobSet", KINDS["jobset"][0], name, spec=_of_runtime(name, spec))
    made = api.create(wanted)
    if bool(made["spec"].get("suspend")) is not bool(spec.get("suspend")):
        api.patch(api.path_to(wanted), {"spec": {"suspend": bool(spec.get("suspend"))}})
    if finished(made, ["Failed"]):
        _say(api, one, "Failed", finished(made, ["Failed"])["message"])
    elif finished(made, ["Completed"]):
        _say(api, one, "Complete", "jobset completed successfully")


def _of_runtime(name: str, spec: Object) -> Object:
    """The runtime's JobSet, with the TrainJob's trainer and overrides in it."""
    trainer = spec["trainer"]
    told: list[Object] = [
        {"name": "PET_NNODES", "value": str(trainer["numNodes"])},
        {"name": "PET_NPROC_PER_NODE", "value": str(trainer["numProcPerNode"])},
        {"name": "PET_NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": _INDEX}}},
        {"name": "PET_MASTER_ADDR", "value": f"{name}-node-0-0.{name}"},
        {"name": "PET_MASTER_PORT", "value": "29500"},
    ]
    container = {"name": "node", **{key: trainer[key] for key in ("image", "command", "args")}}
    container |= {"resources": trainer.get("resourcesPerNode", {}), "env": [*trainer.get("env", ()), *told]}
    pod: Object = {"metadata": {}, "spec": {"containers": [container]}}
    for over in spec.get("podTemplateOverrides", ()):
        if {"name": "node"} in over["targetJobs"]:
            pod = merge(pod, {key: over[key] for key in ("metadata", "spec") if key in over})
    nodes = trainer["numNodes"]
    job = {"parallelism": nodes, "completions": nodes, "backoffLimit": 0, "template": pod}
    return {
        "suspend": bool(spec.get("suspend")),
        "network": {"publishNotReadyAddresses": True},
        "replicatedJobs": [{"name": "node", "replicas": 1, "template": {"spec": job}}],
    }
