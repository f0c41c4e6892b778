"""How tasks are looked at: few calls whatever their number, and a watch that mends itself."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nemorun.executors.kubernetes import polling, watching
from nemorun.executors.kubernetes.api import Api
from nemorun.executors.kubernetes.refusals import ApiError, Forbidden, Gone
from nemorun.executors.kubernetes.watching import Known
from nemorun.job import JobState, Reason, Resources
from tests.executors.kubernetes.conftest import K8sBench, eventually
from tests.k8s_rig import K8sRig

Bench = Callable[..., K8sBench]


# --- watching, with a server of our own


class Server(Api):
    """Holds objects by name; lists them, and hands events to whoever watches."""

    def __init__(self) -> None:
        super().__init__("", None, "ml")
        self.there: dict[str, int] = {}
        self.version = 1
        self.lists = 0
        self.watches: list[str] = []
        self.events: queue.Queue[dict[str, Any] | Exception | None] = queue.Queue()
        self.refuses: ApiError | None = None

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        self.lists += 1
        items = [_object(name, version) for name, version in self.there.items()]
        return {"metadata": {"resourceVersion": str(self.version)}, "items": items}

    def open(self, path: str, *, silence: float | None = None, **query: Any) -> Any:
        self.watches.append(query["resourceVersion"])
        if self.refuses:
            raise self.refuses
        return self

    def stream(self, size: int) -> Iterator[bytes]:
        while (event := self.events.get(timeout=20)) is not None:
            if isinstance(event, Exception):
                raise event
            line = json.dumps(event).encode() + b"\n"
            yield line[:9]
            yield line[9:]

    def close(self) -> None:
        pass

    def happens(self, kind: str, name: str) -> None:
        self.version += 1
        if kind == "DELETED":
            del self.there[name]
        else:
            self.there[name] = self.version
        self.events.put({"type": kind, "object": _object(name, self.version)})


def _object(name: str, version: int) -> dict[str, Any]:
    return {"metadata": {"name": name, "uid": name, "resourceVersion": str(version), "managedFields": []}}


def names(known: Known) -> set[str]:
    known.look()
    return {one["metadata"]["name"] for one in known.objects.values()}


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.events.put(ValueError("the test is over"))


def followed(server: Server) -> Known:
    """Asked twice, and so watched."""
    known = Known(server, "/pods", "x=y")
    known.look()
    known.look()
    eventually(lambda: known._live)
    return known


def test_who_asks_once_gets_a_list_and_no_watch(server: Server) -> None:
    server.there["a"] = 1
    assert names(Known(server, "/pods", "x=y")) == {"a"}
    assert (server.lists, server.watches) == (1, [])


def test_who_asks_again_and_again_is_served_by_one_watch(server: Server) -> None:
    known = followed(server)
    lists = server.lists
    server.happens("ADDED", "a")
    eventually(lambda: names(known) == {"a"})
    server.happens("ADDED", "b")
    server.happens("DELETED", "a")
    eventually(lambda: names(known) == {"b"})
    assert set(known.deleted) == {"a"}
    assert "managedFields" not in known.objects["b"]["metadata"]
    assert (server.lists, len(server.watches)) == (lists, 1)


def test_a_watch_that_its_server_ends_goes_on_from_the_last_event(server: Server) -> None:
    known = followed(server)
    lists = server.lists
    server.happens("ADDED", "a")
    server.version = 77
    server.events.put({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "77"}}})
    server.events.put(None)
    server.happens("ADDED", "b")
    eventually(lambda: names(known) == {"a", "b"})
    assert server.watches == ["1", "77"]
    assert server.lists <= lists + 1  # one may have been asked for in between


@pytest.mark.parametrize(
    "trouble",
    [
        {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}},
        Gone("too old resource version", status=410),
        OSError("connection reset"),
        ValueError("half a line"),
    ],
)
def test_after_trouble_it_lists_and_watches_from_there(
    server: Server, trouble: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_RETRY", 0.0)
    known = followed(server)
    server.there["missed"] = 5  # no event tells of it
    server.version = 500
    server.events.put(trouble)
    eventually(lambda: names(known) == {"missed"})
    eventually(lambda: (known.look(), known._live)[1])
    assert server.watches[-1] == "500"


def test_who_may_only_list_is_served_by_lists(server: Server) -> None:
    server.refuses = Forbidden("you may not watch", status=403)
    known = Known(server, "/pods", "x=y")
    for _ in range(5):
        known.look()
        time.sleep(0.01)
    server.there["a"] = 1
    assert names(known) == {"a"}
    assert len(server.watches) == 1


# --- on the rig


def test_all_tasks_are_asked_for_in_two_calls_and_then_watched(k8s: Bench) -> None:
    bench = k8s(node_selector={"rig/kind": "fake"})
    for number in range(5):
        bench.add(f"task-{number}", resources=Resources(2))
    bench.submit()
    before = bench.api.calls
    bench.executor.poll(bench.refs)
    assert bench.api.calls - before <= 3  # jobs, pods, and events where something waits
    eventually(lambda: bench.executor.poll(bench.refs) and _watched(bench) == 2)
    before = bench.api.calls
    for _ in range(50):
        bench.executor.poll(bench.refs)
    assert bench.api.calls - before <= 1  # for events, at most


def _watched(bench: K8sBench) -> int:
    return sum(one._live for (api, _, _), one in watching._known.items() if api == id(bench.api))


def test_a_quota_and_a_node_that_is_missing_are_told_at_once(k8s: Bench, k8s_rig: K8sRig) -> None:
    bench, over = k8s(node_selector={"rig/kind": "fake"}), k8s(node_selector={"rig/kind": "fake"})
    k8s_rig.kubectl("create", "quota", "gpus", "--hard=requests.nvidia.com/gpu=12", "-n", bench.namespace)
    for each in (bench, over):
        each.add(resources=Resources(1, 1, 8))
        each.submit()
        eventually(lambda: bench.objects("pods"))  # the first has its share before the second asks
    now = eventually(lambda: (s := over.status()).reason is Reason.QUOTA and s)
    assert now.state is JobState.PENDING
    assert "requests.nvidia.com/gpu=12" in now.message
    other = k8s(node_selector={"no": "where"})
    other.add()
    other.submit()
    now = eventually(lambda: (s := other.status()).reason is Reason.RESOURCES and s)
    assert "nodes are available" in now.message


def test_what_somebody_else_deletes_is_cancelled_or_unknown_but_never_succeeded(k8s: Bench) -> None:
    bench = k8s(node_selector={"rig/kind": "fake"})
    ref = bench.add()
    bench.submit()
    assert bench.status().state is JobState.PENDING
    bench.rig.kubectl("delete", "jobs", "--all", "-n", bench.namespace, "--wait=true")
    now = eventually(lambda: (s := bench.status()).state is not JobState.PENDING and s)
    assert now.state is JobState.CANCELLED
    assert "not by nemorun" in now.message
    # a process that never saw it run, and knows that it was submitted
    polling._seen.clear()
    handle = f"job/{bench.namespace}/task-{bench.id}"
    known = type(ref)(ref.name, ref.token, ref.run_dir, handle)
    now = bench.executor.poll([known])[ref.token]
    assert now.state is JobState.UNKNOWN
    assert handle in now.message


@pytest.fixture
def real(k8s_node: K8sRig, k8s: Bench) -> Bench:
    def make(**fields: Any) -> K8sBench:
        small = {"node_selector": {"rig/kind": "real"}, "image_pull_policy": "IfNotPresent", "cpus": "20m"}
        return k8s(**{**small, "grace_period": 5, **fields})

    return make


SAVES = """
import os, signal, sys, time
mark = "/state/" + os.environ["NEMORUN_EXPERIMENT"]
if os.path.exists(mark):
    sys.exit(print("resumed from", open(mark).read()))
def save(*_):
    open(mark, "w").write("step 7")
    print("saved", flush=True)
    os._exit(75)
signal.signal(signal.SIGTERM, save)
print("begun", flush=True)
time.sleep(60)
"""


def test_a_preempted_pod_saves_and_its_successor_resumes(real: Bench, tmp_path: Any) -> None:
    bench = real(volumes=[f"hostpath:{tmp_path}:/state"])
    bench.add(python=SAVES, resumable=True, retries=1)
    bench.submit()
    eventually(lambda: bench.status().state is JobState.RUNNING and "begun" in bench.log())
    (pod,) = bench.rig.get("pods", bench.namespace)
    # as the kubelet tells it; a pod that is deleted may be replaced before it has saved, on an old cluster
    bench.rig.kubectl("exec", pod["metadata"]["name"], "-n", bench.namespace, "--", "bash", "-c", "kill 1")
    now = bench.wait()["task"]
    assert (now.state, now.attempt) == (JobState.SUCCEEDED, 2)
    assert "resumed from step 7" in bench.log()


def test_results_come_back_and_dependents_are_let_go(real: Bench) -> None:
    bench = real()
    bench.add("first", python="print('first')")
    bench.add("second", python="print('second')", dependencies=("first",))
    bench.add("broken", python="raise SystemExit(4)")
    bench.add("never", python="print('never')", dependencies=("broken", "first"))
    bench.submit()
    now = bench.wait()
    assert {name: status.state for name, status in now.items()} == {
        "first": JobState.SUCCEEDED,
        "second": JobState.SUCCEEDED,
        "broken": JobState.FAILED,
        "never": JobState.FAILED,
    }
    assert now["never"].reason is Reason.DEPENDENCY_FAILED
    assert now["never"].message == "task 'broken' did not succeed"
    assert now["second"].started_at and now["first"].ended_at
    assert now["second"].started_at >= now["first"].ended_at - 1
