"""Submits: a dry run on the server, then the parent, then what it owns, each object exactly once."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from nemorun.errors import SubmitError, SubmitUnclear
from nemorun.executors.base import Rendered
from nemorun.executors.kubernetes.api import Api, Object, api_of
from nemorun.executors.kubernetes.code import code_objects, whole_parent
from nemorun.executors.kubernetes.manifests import KubernetesRendered, Task
from nemorun.executors.kubernetes.names import EXPERIMENT_LABEL
from nemorun.executors.kubernetes.preflight import look_ahead
from nemorun.executors.kubernetes.refusals import AlreadyExists, ApiError

if TYPE_CHECKING:
    from nemorun.executors.kubernetes.executor import KubernetesExecutor

#: Annotation of a parent: which call made it, so that only that one takes it back where it fails.
_MAKER = "nemorun/submission"
#: Requests at once, where there are many tasks.
_AT_ONCE = 8


def submit(executor: KubernetesExecutor, rendered: Rendered, secrets: Mapping[str, str]) -> dict[str, str]:
    """Task name -> handle. Called again with the same submission, it finds the first one.

    Raises SubmitError where nothing runs, SubmitUnclear where nobody knows.
    """
    assert isinstance(rendered, KubernetesRendered)
    api = api_of(executor)
    parent = whole_parent(rendered)
    try:
        _on_all(lambda task: _try_out(api, task.workload), rendered.tasks)
    except ApiError as error:
        raise SubmitError(f"{error}; nothing was submitted") from error
    code = list(code_objects(rendered))
    look_ahead(api, rendered.tasks, [parent, *code, *rendered.owned])
    maker = uuid.uuid4().hex
    owner = _create_parent(api, parent, maker)
    try:
        for needed in code:
            _create(api, needed, owner)
        _on_all(lambda task: _create_task(api, task, owner, secrets), rendered.tasks)
        if rendered.starter:
            _create(api, rendered.starter, owner)
    except SubmitUnclear:
        raise
    except SubmitError as error:
        if owner["metadata"]["annotations"][_MAKER] == maker:
            _take_back(api, owner, error)
        raise SubmitError(f"{error}; nothing was submitted") from error
    return {task.name: handle(api, task.workload) for task in rendered.tasks}


def handle(api: Api, workload: Object) -> str:
    return f"{workload['kind'].lower()}/{api.namespace}/{workload['metadata']['name']}"


def _try_out(api: Api, workload: Object) -> None:
    with suppress(AlreadyExists):  # of a first call; whose it is will be looked at
        api.dry_run(workload)


def _create_parent(api: Api, parent: Object, maker: str) -> Object:
    metadata = parent["metadata"]
    marked = {**metadata, "annotations": {**metadata.get("annotations", {}), _MAKER: maker}}
    try:
        made = api.create({**parent, "metadata": marked})
    except SubmitUnclear:
        raise
    except ApiError as error:
        raise SubmitError(f"{error}; nothing was submitted") from error
    found = made["metadata"]
    if found.get("labels", {}).get(EXPERIMENT_LABEL) != metadata["labels"][EXPERIMENT_LABEL]:
        raise SubmitError(
            f"the namespace '{api.namespace}' has a ConfigMap '{metadata['name']}' that is not of this "
            "experiment; nothing was submitted"
        )
    if "deletionTimestamp" in found:
        raise SubmitError(f"'{metadata['name']}' is just being deleted; nothing was submitted")
    found.setdefault("annotations", {}).setdefault(_MAKER, "")
    return made


def _create_task(api: Api, task: Task, owner: Object, secrets: Mapping[str, str]) -> None:
    for manifest in task.objects:
        if manifest["kind"] == "Secret":
            names = manifest.get("stringData", {})
            manifest = {**manifest, "stringData": {name: secrets[name] for name in names}}
        _create(api, manifest, owner)


def _create(api: Api, manifest: Object, owner: Object) -> None:
    """Create an object that goes when its owner goes; one that is there must be the owner's, too."""
    of = {"apiVersion": "v1", "kind": "ConfigMap"}
    of |= {key: owner["metadata"][key] for key in ("name", "uid")}
    made = api.create({**manifest, "metadata": {**manifest["metadata"], "ownerReferences": [of]}})
    if all(one["uid"] != of["uid"] for one in made["metadata"].get("ownerReferences", ())):
        raise SubmitError(
            f"the namespace '{api.namespace}' has a {manifest['kind']} '{manifest['metadata']['name']}' that "
            "does not belong to this submission; delete it, or give the task another name"
        )


def _take_back(api: Api, owner: Object, why: SubmitError) -> None:
    """Delete what was created of a submission that failed."""
    try:
        api.delete(api.path_to(owner), uid=owner["metadata"]["uid"])
    except ApiError as error:
        raise SubmitUnclear(
            f"{why}; and what was created before that cannot be deleted again: {error}"
        ) from error


def _on_all(do: Callable[[Task], object], tasks: Sequence[Task]) -> None:
    """For every task, several at once; the first error is raised when all are done."""
    if len(tasks) == 1:
        do(tasks[0])
        return
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for done in [pool.submit(do, task) for task in tasks]:
            done.result()
