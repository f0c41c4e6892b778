"""`nemorun executors check`: can this cluster be used from here, and as these fields say?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from nemorun.errors import NemorunError, did_you_mean
from nemorun.executors.base import Check
from nemorun.executors.kubernetes import rights, volumes
from nemorun.executors.kubernetes.api import KUEUE_VERSIONS, PLURALS, Api, Object, api_of
from nemorun.executors.kubernetes.pods import container_resources
from nemorun.executors.kubernetes.quantities import amount
from nemorun.executors.kubernetes.quota import shares, wanted
from nemorun.executors.kubernetes.reasons import condition
from nemorun.executors.kubernetes.refusals import ApiError, Forbidden, NotFound
from nemorun.executors.kubernetes.workloads import KINDS

if TYPE_CHECKING:
    from nemorun.executors.kubernetes.executor import KubernetesExecutor

_INSTALL = {
    "pytorchjob": "Kubeflow's training operator",
    "jobset": "JobSet",
    "trainjob": "Kubeflow Trainer",
}


def check(executor: KubernetesExecutor) -> list[Check]:
    """One line a thing; the first two that fail hide those that need them."""
    try:
        executor.validate()
    except NemorunError as error:
        return [Check("fields", False, str(error))]
    began = time.monotonic()
    try:
        api = api_of(executor)
        version = api.get("/version").get("gitVersion", "?")
    except NemorunError as error:
        return [Check("connection", False, str(error))]
    took = time.monotonic() - began
    done = [Check("connection", True, f"{api.server}, Kubernetes {version}, in {took:.1f} s")]
    done += _tried("namespace", lambda: _namespace(api))
    if not all(one.ok for one in done):
        return done
    for name, look in (
        ("rights", lambda: _rights(api, executor)),
        (KINDS[executor.kind][1], lambda: _kind(api, executor.kind)),
        ("queue", lambda: _queue(api, executor.queue)),
        ("volumes", lambda: _claims(api, executor)),
        ("secrets", lambda: _secrets(api, executor)),
        ("quota", lambda: _quotas(api, executor)),
        ("nodes", lambda: _nodes(api, executor)),
    ):
        done += _tried(name, look)
    return done


def _tried(name: str, look: Callable[[], Iterable[Check]]) -> list[Check]:
    try:
        return list(look())
    except ApiError as error:
        return [Check(name, False, str(error))]


def _namespace(api: Api) -> Iterator[Check]:
    """Nobody needs the right to read namespaces: what would be created there tells."""
    probe = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "nemorun-check"}}
    try:
        api.dry_run(probe)
    except NotFound:
        words = f"there is no namespace '{api.namespace}': ask for it, or set 'namespace' to one you have"
        yield Check("namespace", False, words)
        return
    except Forbidden:  # that is a matter of rights
        pass
    yield Check("namespace", True, api.namespace)


def _rights(api: Api, executor: KubernetesExecutor) -> Iterator[Check]:
    lacking = rights.missing(api, executor.kind, executor.queue)
    if not lacking:
        count = len(rights.needed(executor.kind, executor.queue))
        yield Check("rights", True, f"all {count} that are needed")
    for words in rights.in_words(lacking):
        yield Check(
            "rights",
            False,
            f"you may not {words} in namespace '{api.namespace}': ask for the role of "
            "docs/kubernetes-rbac.yaml",
        )


def _kind(api: Api, kind: str) -> Iterator[Check]:
    version, name = KINDS[kind]
    try:
        known = {one["name"] for one in api.get(f"/apis/{version}")["resources"]}
    except NotFound:
        known = set()
    if PLURALS[name] in known:
        yield Check(name, True, f"the cluster knows {version}")
    else:
        yield Check(
            name,
            False,
            f"the cluster knows no {name} ({version}): have {_INSTALL.get(kind, 'it')} installed, or set "
            "kind=job",
        )


def local_queues(api: Api) -> dict[str, Object] | None:
    """Kueue's queues of the namespace by their names; None where the cluster has no Kueue."""
    for version in KUEUE_VERSIONS:
        try:
            listed = api.get(api.path("LocalQueue", api_version=version))["items"]
        except NotFound:
            continue
        return {one["metadata"]["name"]: one for one in listed}
    return None


def no_queue(api: Api, queue: str, queues: dict[str, Object] | None) -> str:
    """Words for a queue that is not there; none where it is."""
    if queues is None:
        return f"the cluster has no Kueue, so nothing would start '{queue}'; leave 'queue' out"
    if queue in queues:
        return ""
    has = f"it has {', '.join(queues)}{did_you_mean(queue, queues)}" if queues else "it has none"
    return f"namespace '{api.namespace}' has no queue '{queue}'; {has}"


def _queue(api: Api, queue: str | None) -> Iterator[Check]:
    """Is it there, and does Kueue take tasks from it?"""
    if queue is None:
        return
    queues = local_queues(api)
    if missing := no_queue(api, queue, queues):
        yield Check("queue", False, missing)
    elif stopped := _stopped((queues or {})[queue]):
        yield Check("queue", False, f"queue '{queue}' starts nothing at present: {stopped}")
    else:
        yield Check("queue", True, queue)


def _stopped(queue: Object) -> str:
    """Why it does not start anything, if so."""
    policy = queue.get("spec", {}).get("stopPolicy") or "None"
    if policy != "None":
        return f"an administrator has stopped it (stopPolicy {policy})"
    active = condition(queue, "Active", "False")
    return str(active.get("message") or "it is not active") if active else ""


def no_claim(api: Api, claim: str) -> str:
    """Words for a claim that is not there, or has lost its volume; none where pods can mount it."""
    found = api.find(api.path("PersistentVolumeClaim", claim))
    if found is None:
        return f"namespace '{api.namespace}' has no claim '{claim}'; create it"
    lost = found.get("status", {}).get("phase") == "Lost"
    return f"claim '{claim}' has lost its volume" if lost else ""


def no_secret(api: Api, name: str) -> str:
    """Words for a secret that is not there; none where it is."""
    there = api.find(api.path("Secret", name)) is not None
    return "" if there else f"namespace '{api.namespace}' has no secret '{name}'; create it"


def _claims(api: Api, executor: KubernetesExecutor) -> Iterator[Check]:
    for claim in volumes.claims(executor.volumes):
        missing = no_claim(api, claim)
        yield Check("volumes", not missing, missing or f"claim '{claim}' is there")


def _secrets(api: Api, executor: KubernetesExecutor) -> Iterator[Check]:
    for name in (*executor.image_pull_secrets, *executor.env_from_secrets):
        missing = no_secret(api, name)
        yield Check("secrets", not missing, missing or name)


def _quotas(api: Api, executor: KubernetesExecutor) -> Iterator[Check]:
    """Is what one task asks for left?"""
    try:
        quotas = api.get(api.path("ResourceQuota"))["items"]
    except Forbidden:
        yield Check("quota", True, "not known: you may not list resourcequotas")
        return
    asked = wanted(executor.nodes or 1, container_resources(executor, executor.num_gpus or 0))
    asked["count/jobs.batch"] = int(executor.kind == "job")
    asked["count/configmaps"] = 1 + (executor.code == "configmap")
    for share in shares(quotas, asked):
        words = f"{share.quota}: {share}"
        if not share.left:
            words += f", and a task asks for {share.asked:g}; wait, ask for less, or have it raised"
        yield Check("quota", share.left, words)


def _nodes(api: Api, executor: KubernetesExecutor) -> Iterator[Check]:
    """GPUs of the nodes that a task could run on."""
    try:
        nodes = api.get("/api/v1/nodes")["items"]
    except Forbidden:
        yield Check("nodes", True, "not known: you may not list nodes")
        return
    fit = [one for one in nodes if _fits(one, executor.node_selector)]
    gpus = [int(amount(one["status"].get("allocatable", {}).get(executor.gpu_resource, 0))) for one in fit]
    words = f"{len(fit)} of {len(nodes)} can be used, with {sum(gpus)} {executor.gpu_resource}"
    asked, each = executor.nodes or 1, executor.num_gpus or 0
    room = sum(count // each for count in gpus) if each else asked * len(fit)
    if room < asked:
        words += f"; a task asks for {asked} pods with {each} each, and there is room for {room}"
    yield Check("nodes", room >= asked, words)


def _fits(node: Object, selector: dict[str, str]) -> bool:
    labels = node["metadata"].get("labels", {})
    open_ = not node.get("spec", {}).get("unschedulable")
    return open_ and all(labels.get(key) == value for key, value in selector.items())
