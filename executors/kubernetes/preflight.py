"""What is asked before something is submitted, so that it fails now and not later: queue, and rights.

One submission of one task is to be six calls at most; what these leave room for is asked, the likelier
mistake first. All of it, and claims, quota and nodes, are asked for by `nemorun executors check`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from nemorun.errors import SubmitError
from nemorun.executors.kubernetes import rights
from nemorun.executors.kubernetes.api import PLURALS, Api, Object
from nemorun.executors.kubernetes.checks import local_queues, no_queue
from nemorun.executors.kubernetes.manifests import QUEUE
from nemorun.executors.kubernetes.refusals import ApiError
from nemorun.executors.kubernetes.rights import Right
from nemorun.executors.kubernetes.workloads import KINDS, queue_of, waits_for

#: Calls of a submission of one task, at most.
MOST_CALLS = 6


def look_ahead(api: Api, workloads: int, objects: list[Object]) -> None:
    """Raises SubmitError. `objects`: all that are to be created; so many of them are workloads, tried out."""
    queues = sorted(set(filter(None, map(_queue_of, objects))))
    questions = [partial(_missing_queues, api, queues)] if queues else []
    questions.append(partial(_missing_rights, api, objects))
    room = MOST_CALLS - len(objects) - workloads if workloads == 1 else len(questions)
    for ask in questions[: max(0, room)]:
        try:
            if words := ask():
                raise SubmitError(f"{words}; nothing was submitted")
        except ApiError:  # who may not ask learns it when it is needed
            continue


def _queue_of(one: Object) -> str | None:
    """The queue that it is in, or will be in once it need not wait for other tasks."""
    return queue_of(one) or (one["metadata"].get("annotations") or {}).get(QUEUE)


def _missing_queues(api: Api, queues: list[str]) -> str:
    there = local_queues(api)
    return "; ".join(filter(None, (no_queue(api, queue, there) for queue in queues)))


def _missing_rights(api: Api, objects: list[Object]) -> str:
    """Those without which it cannot be submitted, looked at, or cancelled."""
    lacking = rights.surely_missing(api, _needed(objects))
    if not lacking:
        return ""
    verbs = " and ".join(
        f"the verb '{one.verb}' on '{one.resource}'" + (f" of API group '{one.group}'" if one.group else "")
        for one in lacking
    )
    return (
        f"you may not do in namespace '{api.namespace}' what this needs: the role lacks {verbs}; "
        "docs/kubernetes-rbac.yaml has all that are needed"
    )


def _needed(objects: Iterable[Object]) -> list[Right]:
    found = {Right("list", "pods"), Right("get", "pods/log"), Right("delete", "configmaps")}
    for one in objects:
        resource, group = PLURALS[one["kind"]], one["apiVersion"].rpartition("/")[0]
        found.add(Right("create", resource, group))
        if one["kind"] == "Secret":
            found.add(Right("delete", resource))
        if (one["apiVersion"], one["kind"]) in KINDS.values():
            found.add(Right("list", resource, group))
        if waits_for(one):
            found.add(Right("patch", resource, group))
    return sorted(found)
