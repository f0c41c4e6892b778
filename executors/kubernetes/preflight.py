"""What is asked before something is submitted, so that it fails now and not in an hour, in the queue.

Rights and quota are asked for always; a queue, claims and secrets where a task names them. All questions
are out at once, so they take the time of one. `nemorun executors check` asks for nodes as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from nemorun.errors import SubmitError
from nemorun.executors.kubernetes import rights
from nemorun.executors.kubernetes.api import PLURALS, Api, Object
from nemorun.executors.kubernetes.checks import local_queues, no_claim, no_queue, no_secret
from nemorun.executors.kubernetes.manifests import QUEUE, Task
from nemorun.executors.kubernetes.quota import shares, wanted
from nemorun.executors.kubernetes.refusals import ApiError
from nemorun.executors.kubernetes.rights import Right
from nemorun.executors.kubernetes.workloads import KINDS, pod_specs, pods_wanted, queue_of, waits_for

#: Questions at once.
_AT_ONCE = 8


def look_ahead(api: Api, tasks: Sequence[Task], objects: Sequence[Object]) -> None:
    """Raises SubmitError with all that is missing. `objects`: all that are to be created for the tasks."""
    questions: list[Callable[[], str]] = [
        partial(_missing_rights, api, objects),
        partial(_too_small_quota, api, tasks),
    ]
    if queues := sorted(set(filter(None, map(_queue_of, objects)))):
        questions.append(partial(_missing_queues, api, queues))
    pods = [pod for task in tasks for pod in pod_specs(task.workload)]
    own = {one["metadata"]["name"] for one in objects if one["kind"] == "Secret"}
    questions += [partial(no_claim, api, name) for name in _claims(pods)]
    questions += [partial(no_secret, api, name) for name in _secrets(pods) if name not in own]
    with ThreadPoolExecutor(min(len(questions), _AT_ONCE)) as pool:
        found = list(filter(None, pool.map(_answer, questions)))
    if found:
        raise SubmitError(f"{'; '.join(found)}; nothing was submitted")


def _claims(pods: Iterable[Object]) -> list[str]:
    sources = (one.get("persistentVolumeClaim") for pod in pods for one in pod.get("volumes", ()))
    return list(dict.fromkeys(source["claimName"] for source in sources if source))


def _secrets(pods: Iterable[Object]) -> list[str]:
    """Those that pods cannot be without."""
    found = []
    for pod in pods:
        found += [one["name"] for one in pod.get("imagePullSecrets", ())]
        for container in pod["containers"]:
            sources = [one.get("secretRef", {}) for one in container.get("envFrom", ())]
            found += [one["name"] for one in sources if one and not one.get("optional")]
    return list(dict.fromkeys(found))


def _answer(question: Callable[[], str]) -> str:
    """What is missing; nothing where one may not ask: who may not ask learns it when it is needed."""
    try:
        return question()
    except ApiError:
        return ""


def _too_small_quota(api: Api, tasks: Sequence[Task]) -> str:
    """A task waits for what is used up at present; for what a quota has not at all it would for ever."""
    quotas = api.get(api.path("ResourceQuota"))["items"]
    for task in tasks:
        # all pods of a task are alike
        pod = next(pod_specs(task.workload), None)
        resources = pod["containers"][0].get("resources", {}) if pod else {}
        for share in shares(quotas, wanted(pods_wanted(task.workload), resources)):
            if share.never:
                return (
                    f"task '{task.name}' asks for {share.asked:g} {share.resource}, and quota "
                    f"'{share.quota}' of namespace '{api.namespace}' allows {share.hard} in all; ask for "
                    "less, or have it raised"
                )
    return ""


def _queue_of(one: Object) -> str | None:
    """The queue that it is in, or will be in once it need not wait for other tasks."""
    return queue_of(one) or (one["metadata"].get("annotations") or {}).get(QUEUE)


def _missing_queues(api: Api, queues: list[str]) -> str:
    there = local_queues(api)
    return "; ".join(filter(None, (no_queue(api, queue, there) for queue in queues)))


def _missing_rights(api: Api, objects: Sequence[Object]) -> str:
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
