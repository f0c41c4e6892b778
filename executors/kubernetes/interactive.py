"""A person's shell on the cluster: in a pod of its own, or beside a running rank.

The pod is submitted as a task is, with the same image, resources, environment, code and mounts; only that its
command waits for the person, and ends when they have left.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from nemorun.errors import ConfigError, SubmitError
from nemorun.executors.base import Rendered
from nemorun.executors.kubernetes import attempts
from nemorun.executors.kubernetes.api import Api, Object, api_of
from nemorun.executors.kubernetes.environment import HOME, is_bare
from nemorun.executors.kubernetes.manifests import KubernetesRendered
from nemorun.executors.kubernetes.names import object_name
from nemorun.executors.kubernetes.pods import bare_pod
from nemorun.executors.kubernetes.polling import pods_of
from nemorun.executors.kubernetes.reasons import container_status, ended, waiting
from nemorun.executors.kubernetes.submission import submit
from nemorun.executors.kubernetes.terminal import enter
from nemorun.job import JobRef, JobSpec, Resources
from nemorun.remote import terminal

if TYPE_CHECKING:
    from nemorun.executors.kubernetes.executor import KubernetesExecutor

#: Seconds after which a forgotten shell is ended: the cluster does not tell it that its person is gone.
LONGEST = 12 * 3600
#: The pod's own process: there while the shell is, and five minutes for it to come.
_WAIT = """\
trap 'exit 0' TERM
touch /tmp/nemorun-ready
left=150
while [ "$left" -gt 0 ]; do
    sleep 2 &
    wait $!
    if [ -e /tmp/nemorun-shell ]; then
        kill -0 "$(cat /tmp/nemorun-shell)" 2>/dev/null || exit 0
    else
        left=$((left - 1))
    fi
done"""
_ARRIVE = """\
until [ -e /tmp/nemorun-ready ]; do sleep 0.1; done
echo $$ > /tmp/nemorun-shell"""
_SHELL = """\
cd "${NEMORUN_WORKDIR:-${NEMORUN_CODE:-.}}" 2>/dev/null || true
command -v bash >/dev/null && exec bash -i
exec sh -i"""


def shell(executor: KubernetesExecutor, rendered: Rendered, secrets: Mapping[str, str]) -> int:
    """In a pod that ends with it."""
    terminal.require()  # before anything is sent
    assert isinstance(rendered, KubernetesRendered)
    (job,), (task,) = rendered.jobs, rendered.tasks
    pod = _pod(executor, job)
    # of a task of several pods, what a pod needs besides: its secrets
    needed = tuple(one for one in task.objects[:-1] if one["kind"] == "Secret")
    api = api_of(executor)
    submit(executor, replace(rendered, tasks=(replace(task, objects=(*needed, pod)),)), secrets)
    try:
        name, container = pod["metadata"]["name"], pod["spec"]["containers"][0]["name"]
        _wait_until_there(api, name)
        return enter(api, name, container, _command([_ARRIVE, _SHELL]))
    finally:
        api.delete(api.path("ConfigMap", rendered.parent["metadata"]["name"]))


def attach(executor: KubernetesExecutor, ref: JobRef, job: JobSpec, rank: int) -> int:
    """In the rank's own pod."""
    terminal.require()
    api = api_of(executor)
    index, local = divmod(rank, job.resources.ntasks_per_node)
    found = [pod for pod in pods_of(api, [ref])[ref.token] if attempts.index_of(pod) == index]
    running = [pod for pod in found if "running" in (container_status(pod).get("state") or {})]
    if not running:
        raise SubmitError(f"task '{job.name}' does not run: there is no pod of rank {rank}")
    pod = running[-1]
    variables = f"export RANK={rank} LOCAL_RANK={local} WORLD_SIZE={job.resources.world_size}"
    container = pod["spec"]["containers"][0]["name"]
    return enter(api, pod["metadata"]["name"], container, _command([variables, _SHELL]))


def _command(lines: list[str]) -> list[str]:
    kind = f"export TERM={shlex.quote(os.environ.get('TERM', 'xterm'))}"
    return ["sh", "-c", "\n".join([kind, *lines])]


def _pod(executor: KubernetesExecutor, job: JobSpec) -> Object:
    """One pod of the task, whose only rank waits for a person."""
    one = Resources(1, 1, job.resources.gpus_per_node)
    words: tuple[str, ...] = ("sh", "-c", _WAIT)
    alone = replace(job, task=None, command=words, resources=one, dependencies=(), resumable=False)
    if not is_bare(executor, alone):
        words = ("sh", f"{HOME}/files/start.sh", "--command", "--", *words)
    made = bare_pod(executor, alone, [*words], object_name(job.token))
    made["spec"].setdefault("activeDeadlineSeconds", executor.active_deadline or LONGEST)
    return made


def _wait_until_there(api: Api, name: str) -> None:
    """Return when the pod runs; say meanwhile why it does not. Raises SubmitError where it has ended."""
    told = ""
    while True:
        pod = api.get(api.path("Pod", name))
        if end := ended(pod):
            raise SubmitError(
                f"the pod {name} has ended before its shell began: {end.words or end.reason.value}"
            )
        if "running" in (container_status(pod).get("state") or {}):
            return
        if (why := waiting(pod)) and why[1] != told:
            told = why[1]
            print(f"{why[0].value}: {told}", file=sys.stderr, flush=True)
        time.sleep(0.5)


def debug() -> int:
    raise ConfigError(
        "resources that are kept between two sessions are not available on Kubernetes; "
        "`nemorun shell` opens a pod that ends with it"
    )
