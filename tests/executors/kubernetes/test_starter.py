"""Tasks that wait for others start though nobody asks: by a pod that has the documented role."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemorun.executors.kubernetes.pod_starter import step
from nemorun.job import JobState, Reason
from tests.executors.kubernetes.conftest import K8sBench, eventually
from tests.k8s_rig import K8sRig

Make = Callable[..., K8sBench]
ROLE = Path(__file__).parents[3] / "docs" / "kubernetes-starter.yaml"
ACCOUNT = "nemorun-starter"


@pytest.fixture
def starting(k8s_node: K8sRig, k8s: Make, k8s_namespace: str) -> Make:
    """Benches whose pods reach the rig's API server: it listens to the node itself alone."""
    k8s_node.kubectl("apply", "-n", k8s_namespace, "-f", str(ROLE))
    words = (f"--role={ACCOUNT}", f"--serviceaccount={k8s_namespace}:{ACCOUNT}", "-n", k8s_namespace)
    k8s_node.kubectl("create", "rolebinding", ACCOUNT, *words)
    host, _, port = k8s_node.facts["server"].removeprefix("https://").partition(":")
    server = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
    env = [{"name": name, "value": value} for name, value in server.items()]

    def make(**fields: Any) -> K8sBench:
        overrides = {"spec": {"containers": [{"name": "nemo", "env": env}]}}
        own = {"starter_account": ACCOUNT, "host_network": True, "pod_overrides": overrides}
        return k8s(node_selector={"rig/kind": "real"}, cpus="20m", **{**own, **fields})

    return make


def ended(bench: K8sBench, kind: str) -> set[str]:
    """Names of the Jobs that have ended so, as the cluster says it: nobody asks nemorun."""
    return {
        one["metadata"]["name"].removesuffix(f"-{bench.id}")
        for one in bench.objects("jobs")
        if any(condition["type"] == kind for condition in (one.get("status") or {}).get("conditions") or ())
    }


def test_dependents_start_though_nobody_asks(starting: Make) -> None:
    bench = starting()
    bench.add("first", command=("true",))
    bench.add("second", command=("true",), dependencies=("first",))
    bench.add("third", command=("true",), dependencies=("first", "second"))
    bench.add("broken", command=("false",))
    bench.add("never", command=("true",), dependencies=("broken",))
    bench.submit()
    done = {"first", "second", "third", f"bench-{bench.id}-starter"}
    eventually(lambda: ended(bench, "Complete") == done, 90)
    assert ended(bench, "Failed") == {"broken"}
    now = bench.wait()
    assert {name for name, status in now.items() if status.state is JobState.SUCCEEDED} == {
        *("first", "second", "third")
    }
    assert now["never"].reason is Reason.DEPENDENCY_FAILED
    bench.executor.cancel(bench.refs)
    eventually(lambda: not bench.objects())


def test_what_a_user_has_suspended_waits(k8s: Make) -> None:
    bench = k8s(node_selector={"rig/kind": "fake"})
    bench.add("first")
    bench.add("second", dependencies=("first",))
    bench.submit()
    server = Direct(bench)
    assert step(server, bench.id, ["job"])  # it is waited for
    bench.executor.suspend([bench.ref("second")])
    eventually(lambda: active(bench, "first") == 1)

    def is_held() -> bool | None:
        """Whether the second task is, after a look when the first was done. None: it was not, because the
        Job controller writes its own word over ours as long as it has something new to say."""
        done = {"status": {"conditions": [{"type": "Complete", "status": "True"}]}}
        path = bench.api.path("Job", f"first-{bench.id}", "batch/v1")
        bench.api.call("PATCH", f"{path}/status", done, content="application/merge-patch+json")
        step(server, bench.id, ["job"])
        (job,) = (one for one in bench.objects("jobs") if one["metadata"]["name"].startswith("second"))
        return bool(job["spec"]["suspend"]) if ended(bench, "Complete") else None

    eventually(lambda: is_held() is True)
    assert bench.status("second").reason is Reason.SUSPENDED
    bench.executor.resume([bench.ref("second")])
    eventually(lambda: is_held() is False)
    assert not step(server, bench.id, ["job"])


def active(bench: K8sBench, task: str) -> int:
    """How many running pods the cluster counts for a task's Job."""
    job = bench.api.get(bench.api.path("Job", f"{task}-{bench.id}", "batch/v1"))
    return int((job.get("status") or {}).get("active") or 0)


class Direct:
    """The API server as a pod sees it, asked from here."""

    def __init__(self, bench: K8sBench) -> None:
        self.api, self.namespace = bench.api, bench.namespace

    def ask(self, path: str, change: dict[str, Any] | None = None) -> dict[str, Any]:
        return self.api.get(path) if change is None else self.api.patch(path, json.loads(json.dumps(change)))
