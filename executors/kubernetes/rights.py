"""The verbs that nemorun uses on a cluster, which docs/kubernetes-rbac.yaml grants, and what a user lacks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from nemorun.executors.kubernetes.api import PLURALS, Api, Object
from nemorun.executors.kubernetes.workloads import KINDS


class Right(NamedTuple):
    verb: str
    resource: str
    """With its subresource: `pods/log`."""
    group: str = ""


_OWN = {
    "configmaps": ("create", "delete", "get"),
    "events": ("list",),
    "pods": ("create", "delete", "get", "list", "watch"),
    "pods/exec": ("create", "get"),
    "pods/log": ("get",),
    "secrets": ("create", "delete", "get"),
    "services": ("create", "delete", "get"),
}
_WORKLOAD = ("create", "delete", "get", "list", "patch", "watch")


def needed(kind: str, queue: str | None = None) -> list[Right]:
    """What a user needs for an executor of this kind, and with a queue of Kueue."""
    group = KINDS[kind][0].partition("/")[0]
    own = [Right(verb, resource) for resource, verbs in _OWN.items() for verb in verbs]
    own += [Right(verb, "workloads", "kueue.x-k8s.io") for verb in ("list", "patch") if queue]
    return own + [Right(verb, PLURALS[KINDS[kind][1]], group) for verb in _WORKLOAD]


def missing(api: Api, kind: str, queue: str | None) -> list[Right]:
    """Those that the user lacks: one question for all; what the answer leaves open is asked one by one."""
    open_, sure = _not_granted(api, needed(kind, queue))
    return open_ if sure else [right for right in open_ if not _may(api, right)]


def surely_missing(api: Api, wanted: list[Right]) -> list[Right]:
    """Those that the user lacks, by one question; what the answer leaves open is not among them."""
    open_, sure = _not_granted(api, wanted)
    return open_ if sure else []


def _not_granted(api: Api, wanted: list[Right]) -> tuple[list[Right], bool]:
    """Those that the user's roles do not have, and whether that is all that counts."""
    answer = _review(api, "SelfSubjectRulesReview", {"namespace": api.namespace})["status"]
    rules = answer.get("resourceRules") or []
    open_ = [right for right in wanted if not any(_grants(rule, right) for rule in rules)]
    return open_, not answer.get("incomplete")


def in_words(rights: list[Right]) -> Iterator[str]:
    """One phrase for each resource: `get, list on pods/log`."""
    for resource, group in dict.fromkeys((right.resource, right.group) for right in rights):
        verbs = ", ".join(one.verb for one in rights if (one.resource, one.group) == (resource, group))
        yield f"{verbs} on {resource}" + (f" of {group}" if group else "")


def _may(api: Api, right: Right) -> bool:
    resource, _, sub = right.resource.partition("/")
    asked = {"namespace": api.namespace, "verb": right.verb, "group": right.group, "resource": resource}
    review = {"resourceAttributes": {**asked, "subresource": sub}}
    return bool(_review(api, "SelfSubjectAccessReview", review)["status"].get("allowed"))


def _review(api: Api, kind: str, spec: Object) -> Object:
    version = "authorization.k8s.io/v1"
    body = {"apiVersion": version, "kind": kind, "spec": spec}
    return api.call("POST", f"/apis/{version}/{kind.lower()}s", body)


def _grants(rule: Object, right: Right) -> bool:
    if rule.get("resourceNames"):
        return False
    _, slash, sub = right.resource.partition("/")
    resources = {right.resource, "*"} | ({f"*/{sub}"} if slash else set())
    return (
        bool({right.verb, "*"} & set(rule.get("verbs") or ()))
        and bool({right.group, "*"} & set(rule.get("apiGroups") or ()))
        and bool(resources & set(rule.get("resources") or ()))
    )
