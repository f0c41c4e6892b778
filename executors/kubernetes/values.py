"""What the value of each of the executor's fields may be."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nemorun.errors import did_you_mean
from nemorun.executors.kubernetes.names import EXPERIMENT_LABEL, TASK_LABEL
from nemorun.executors.kubernetes.pods import CONTAINER_SECURITY

#: Says what is wrong with a value, or None.
Check = Callable[[Any], "str | None"]

_POD_SECURITY = {
    *("runAsUser", "runAsGroup", "runAsNonRoot", "fsGroup", "fsGroupChangePolicy", "supplementalGroups"),
    *("supplementalGroupsPolicy", "seLinuxOptions", "seLinuxChangePolicy", "seccompProfile"),
    *("appArmorProfile", "sysctls", "windowsOptions"),
}
_AFFINITY = {"nodeAffinity", "podAffinity", "podAntiAffinity"}
_TOLERATION = {"key", "operator", "value", "effect", "tolerationSeconds"}
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_OWN_LABELS = {
    *(EXPERIMENT_LABEL, TASK_LABEL, "app.kubernetes.io/name", "app.kubernetes.io/instance"),
    *("app.kubernetes.io/part-of", "app.kubernetes.io/managed-by"),
}
_SUBDOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
_LABEL = re.compile(rf"({_SUBDOMAIN}/)?[A-Za-z0-9]([-\w.]{{0,61}}[A-Za-z0-9])?", re.ASCII)
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?", re.ASCII)
_QUANTITY = r"\d+(\.\d+)?(m|[kMGTPE]i?|Ki|[eE]\d+)?"


def _whole(least: int) -> Check:
    def check(value: Any) -> str | None:
        good = type(value) is int and value >= least
        return None if good else f"is not a whole number of at least {least}"

    return check


def _one_of(*allowed: str) -> Check:
    def check(value: Any) -> str | None:
        if value in allowed:
            return None
        return f"is none of {', '.join(map(repr, allowed))}{did_you_mean(str(value), allowed)}"

    return check


def _text(pattern: str, wanted: str, longest: int = 4096) -> Check:
    compiled = re.compile(pattern, re.ASCII)

    def check(value: Any) -> str | None:
        good = isinstance(value, str) and compiled.fullmatch(value) and len(value) <= longest
        return None if good else f"is not {wanted}"

    return check


def _list(of: Check) -> Check:
    def check(value: Any) -> str | None:
        if not isinstance(value, list | tuple):
            return "is not a list, such as ['…', '…']"
        return next((f"holds {one!r}, which {why}" for one in value if (why := of(one))), None)

    return check


def _bool(value: Any) -> str | None:
    return None if isinstance(value, bool) else "is neither True nor False"


def _cpus(value: Any) -> str | None:
    if type(value) in (int, float) and 0 < value < 10**6:
        return None
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?m?", value) and float(value.rstrip("m")) > 0:
        return None
    return 'is not a number of CPUs, such as 8, 0.5 or "500m"'


def _resources(value: Any) -> str | None:
    if not isinstance(value, Mapping):
        return "is not a mapping of resources to amounts"
    for name, amount in value.items():
        if not (isinstance(name, str) and _LABEL.fullmatch(name)):
            return f"holds {name!r}, which is not the name of a resource, such as rdma/hca_shared_devices_a"
        good = type(amount) is int and amount >= 0
        if not good and not (isinstance(amount, str) and re.fullmatch(_QUANTITY, amount)):
            return f"holds {amount!r} for {name}, which is not an amount, such as 1 or '10Gi'"
    return None


def _labels(value: Any) -> str | None:
    if why := _annotations(value):
        return why
    for name, text in value.items():
        if not _LABEL_VALUE.fullmatch(text):
            return (
                f"holds {text!r} for {name}, which a label cannot be: up to 63 letters, digits, '-', '_' and"
                " '.', with a letter or a digit at both ends"
            )
    return None


def _own_labels(value: Any) -> str | None:
    if not (why := _labels(value)):
        for name in value:
            if name in _OWN_LABELS:
                return f"holds {name!r}, which nemorun sets itself"
            if name == "kueue.x-k8s.io/queue-name":
                return f"holds {name!r}; set queue instead"
    return why


def _annotations(value: Any) -> str | None:
    if not isinstance(value, Mapping):
        return "is not a mapping of names to texts"
    for name, text in value.items():
        if not (isinstance(name, str) and _LABEL.fullmatch(name)):
            return f"holds {name!r}, which is not a name, such as example.com/team"
        if not isinstance(text, str):
            return f"holds {text!r} for {name}, which is not text; write {str(text)!r}"
    return None


def keys(value: Any, allowed: Iterable[str]) -> str | None:
    """Is it a mapping with no other keys than these?"""
    allowed = sorted(allowed)
    if not isinstance(value, Mapping):
        return f"is not a mapping; its keys are {', '.join(allowed)}"
    for key in value:
        if key not in allowed:
            return f"has the key {key!r}; known are {', '.join(allowed)}{did_you_mean(str(key), allowed)}"
    return None


def _toleration(value: Any) -> str | None:
    form = 'is not a toleration; write "key=value:Effect", "key:Effect", "key" or a mapping'
    if isinstance(value, Mapping):
        effect = value.get("effect", "NoSchedule")
        why = keys(value, _TOLERATION)
    else:
        match = re.fullmatch(r"([^=:]+)(?:=([^:]*))?(?::(\w+))?", value) if isinstance(value, str) else None
        if match is None or not _LABEL.fullmatch(match[1]) or not _LABEL_VALUE.fullmatch(match[2] or ""):
            return form
        effect, why = match[3] or "NoSchedule", None
    if not why and effect not in _EFFECTS:
        nearest = did_you_mean(str(effect), _EFFECTS)
        return f"has the effect {effect!r}; effects are {', '.join(_EFFECTS)}{nearest}"
    return why


def _topology(value: Any) -> str | None:
    for part in value.split(",") if isinstance(value, str) else [""]:
        how, _, rest = part.partition(":")
        label, _, size = rest.rpartition(":") if how == "slice" else (rest, "", "1")
        good = how == "unconstrained" and not rest
        good = good or (how in ("required", "preferred", "slice") and bool(_LABEL.fullmatch(label)))
        if not good or not re.fullmatch(r"[1-9]\d*", size):
            words = ("required", "preferred", "unconstrained", "slice")
            return (
                'is not a topology; write "required:LABEL" or "preferred:LABEL" (of the nodes, such as'
                ' network.topology.nvidia.com/block), "unconstrained" or "slice:LABEL:PODS"; several with'
                " commas"
                f"{did_you_mean(how, words) if how not in words else ''}"
            )
    return None


_NAME = _text(_SUBDOMAIN, "a name: lower-case letters, digits, '-' and '.'", 253)
_SHORT_NAME = _text(
    r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", "a name: up to 63 lower-case letters, digits and '-'", 63
)
_PATH = _text(r"/[^\0\n:]*", "a full path in the pod")
_BYTES = _text(_QUANTITY, "an amount of memory, such as 64Gi")
FIELDS: dict[str, Check] = {
    "namespace": _SHORT_NAME,
    "context": _text(r"[^\0\n]+", "the name of a context"),
    "kind": _one_of("job", "pytorchjob", "jobset", "trainjob"),
    "runtime": _NAME,
    "runtime_patch": _one_of("podTemplateOverrides", "podSpecOverrides", "runtimePatches"),
    "image": _text(r"[A-Za-z0-9][\w.:/@-]*", "an image, such as nvcr.io/nvidia/nemo:24.05"),
    "image_pull_policy": _one_of("Always", "IfNotPresent", "Never"),
    "image_pull_secrets": _list(_NAME),
    "container_name": _SHORT_NAME,
    "nodes": _whole(1),
    "ntasks_per_node": _whole(1),
    "num_gpus": _whole(0),
    "gpu_resource": _text(_LABEL.pattern, "the name of a resource, such as nvidia.com/gpu"),
    "cpus": _cpus,
    "memory": _BYTES,
    "shm_size": _BYTES,
    "extended_resources": _resources,
    "env_from_secrets": _list(_NAME),
    "run_dir": _PATH,
    "code": _one_of("configmap", "pvc", "image"),
    "workdir": _PATH,
    "node_selector": _labels,
    "tolerations": _list(_toleration),
    "affinity": lambda value: keys(value, _AFFINITY),
    "priority_class": _NAME,
    "queue": _SHORT_NAME,
    "topology": _topology,
    "service_account": _NAME,
    "starter_account": _NAME,
    "security_context": lambda value: keys(value, _POD_SECURITY | CONTAINER_SECURITY),
    "host_network": _bool,
    "labels": _own_labels,
    "annotations": _annotations,
    "backoff_limit": _whole(0),
    "active_deadline": _whole(1),
    "ttl_after_finished": _whole(0),
    "grace_period": _whole(0),
    "start_timeout": _whole(1),
    "retries": _whole(0),
}
