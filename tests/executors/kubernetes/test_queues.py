"""Kueue, of which the rig has the kinds only: what is asked of it, and what a stand-in does in its place."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nemorun.errors import SubmitError
from nemorun.executors.kubernetes.api import Api
from nemorun.executors.kubernetes.refusals import ApiError
from nemorun.job import JobState, Reason, Resources
from tests.executors.kubernetes.conftest import K8sBench, eventually
from tests.k8s_rig import K8sRig

Make = Callable[..., K8sBench]
KUEUE = "kueue.x-k8s.io/v1beta1"


@pytest.fixture
def queue(k8s_rig: K8sRig, crds: None, k8s: Make) -> str:
    made = {"apiVersion": KUEUE, "kind": "LocalQueue", "metadata": {"name": "research"}}
    k8s().api.create({**made, "spec": {"clusterQueue": "gpus"}})
    return "research"


@contextlib.contextmanager
def kueue(api: Api) -> Iterator[None]:
    """Makes a Workload of each Job in a queue, and starts and suspends that as its `active` says."""
    over = threading.Event()

    def reconcile() -> None:
        while not over.wait(0.1):
            for job in api.get(api.path("Job", api_version="batch/v1"))["items"]:
                if "kueue.x-k8s.io/queue-name" in job["metadata"].get("labels", {}):
                    with contextlib.suppress(ApiError):
                        _admit(api, job)

    standing = threading.Thread(target=reconcile)
    standing.start()
    try:
        yield
    finally:
        over.set()
        standing.join()


def _admit(api: Api, job: dict[str, Any]) -> None:
    name, uid = job["metadata"]["name"], job["metadata"]["uid"]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid, "controller": True}
    metadata = {
        "name": f"job-{name}-{uid[:5]}",
        "labels": {"kueue.x-k8s.io/job-uid": uid},
        "ownerReferences": [owner],
    }
    spec = {"active": True, "queueName": job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]}
    made = api.create({"apiVersion": KUEUE, "kind": "Workload", "metadata": metadata, "spec": spec})
    if job["spec"].get("suspend") is made["spec"]["active"]:
        api.patch(api.path("Job", name, "batch/v1"), {"spec": {"suspend": not made["spec"]["active"]}})


def test_a_task_in_a_queue_is_started_suspended_and_resumed_by_kueue(k8s: Make, queue: str) -> None:
    bench = k8s(queue=queue, topology="required:rack", node_selector={"rig/kind": "fake"}, grace_period=0)
    bench.add(resources=Resources(nodes=2))
    bench.submit()
    now = bench.status()
    assert (now.state, now.reason) == (JobState.PENDING, Reason.RESOURCES)
    assert "in queue 'research' of Kueue" in now.message
    with pytest.raises(SubmitError, match=r"Kueue has no Workload of Job .* yet"):
        bench.executor.suspend(bench.refs)
    with kueue(bench.api):
        pods = eventually(lambda: len(found := bench.objects("pods")) == 2 and found)
        topology = "kueue.x-k8s.io/podset-required-topology"
        assert {one["metadata"]["annotations"][topology] for one in pods} == {"rack"}
        bench.executor.suspend(bench.refs)
        assert eventually(lambda: bench.status().reason is Reason.SUSPENDED)
        eventually(lambda: bench.objects("jobs")[0]["spec"]["suspend"])
        assert bench.status().reason is Reason.SUSPENDED  # Kueue has not started it again
        bench.executor.resume(bench.refs)
        eventually(lambda: not bench.objects("jobs")[0]["spec"]["suspend"])
        assert bench.status().reason is not Reason.SUSPENDED
        bench.executor.cancel(bench.refs)


def test_a_queue_that_is_not_there_is_refused(k8s: Make, queue: str) -> None:
    bench = k8s(queue="reserach")
    bench.add("first")
    bench.add("second", dependencies=("first",))
    said = "no queue 'reserach'; it has research; did you mean 'research'"
    with pytest.raises(SubmitError, match=said) as no:
        bench.submit()
    assert "nothing was submitted" in str(no.value) and not bench.objects()
    (line,) = (one for one in bench.executor.check() if one.name == "queue")
    assert not line.ok and "did you mean 'research'" in line.message


def test_a_queue_that_is_stopped_is_told_by_checks(k8s: Make, queue: str) -> None:
    bench = k8s(queue=queue)

    def line() -> tuple[bool, str]:
        return next((one.ok, one.message) for one in bench.executor.check() if one.name == "queue")

    assert line() == (True, "research")
    path = bench.api.path("LocalQueue", queue, KUEUE)
    inactive = {"type": "Active", "status": "False", "message": "ClusterQueue gpus is missing"}
    bench.api.patch(path, {"status": {"conditions": [inactive]}})
    assert line() == (False, "queue 'research' starts nothing at present: ClusterQueue gpus is missing")
    bench.api.patch(path, {"spec": {"stopPolicy": "Hold"}})
    assert "an administrator has stopped it (stopPolicy Hold)" in line()[1]
