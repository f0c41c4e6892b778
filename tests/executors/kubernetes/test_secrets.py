"""A secret's value stands in its Secret object only, which goes with the task; users see their own alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nemorun.executors.kubernetes.refusals import Forbidden
from nemorun.job import JobState
from tests.executors.kubernetes.conftest import K8sBench, eventually
from tests.k8s_rig import K8sRig, remove_namespace

Make = Callable[..., K8sBench]
ROLE = Path(__file__).parents[3] / "docs" / "kubernetes-rbac.yaml"
VALUE = "Xy7-do-not-show"
EVERYTHING = "jobs,pods,services,configmaps,events,endpoints,secrets"


def holders(bench: K8sBench) -> set[str]:
    """Kinds of the objects in the namespace that hold the value, in plain or as base64."""
    from base64 import b64encode

    marks = (VALUE, b64encode(VALUE.encode()).decode())
    found = bench.rig.get(EVERYTHING, bench.namespace)
    return {one["kind"] for one in found if any(mark in json.dumps(one) for mark in marks)}


def test_the_value_is_in_the_secret_alone_until_the_end(k8s: Make, k8s_node: K8sRig) -> None:
    bench = k8s(node_selector={"rig/kind": "real"})
    bench.add(command=("sh", "-c", 'echo "${#TOKEN}"'), secrets=("TOKEN",))
    rendered = bench.executor.render(bench.jobs)
    assert VALUE not in rendered.text
    bench.executor.submit(rendered, {"TOKEN": VALUE})
    assert holders(bench) == {"Secret"}
    assert bench.wait()["task"].state is JobState.SUCCEEDED
    assert not bench.objects("secrets") and not holders(bench)
    assert not [path for path in bench.folder.rglob("*") if path.is_file() and VALUE in path.read_text()]


def test_cancelling_deletes_the_secret(k8s: Make) -> None:
    bench = k8s()
    bench.add(secrets=("TOKEN",))
    bench.submit({"TOKEN": VALUE})
    assert holders(bench) == {"Secret"}
    bench.executor.cancel(bench.refs)
    eventually(lambda: not bench.objects("secrets") and not holders(bench))


def test_a_secret_that_stays_is_told(k8s: Make, k8s_node: K8sRig, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = k8s(node_selector={"rig/kind": "real"})
    bench.add(command=("true",), secrets=("TOKEN",))
    bench.submit({"TOKEN": VALUE})

    def refuse(path: str) -> bool:
        raise Forbidden("user 'ann' may not delete secrets")

    monkeypatch.setattr(bench.api, "delete", refuse)
    status = bench.wait()["task"]
    assert status.state is JobState.SUCCEEDED
    assert status.message == "its Secret could not be deleted: user 'ann' may not delete secrets"


def test_two_users_do_not_see_each_other(k8s: Make, k8s_rig: K8sRig, k8s_namespace: str) -> None:
    spaces = {"alice": k8s_namespace, "bob": f"{k8s_namespace}-bob"}
    k8s_rig.kubectl("create", "namespace", spaces["bob"])
    try:
        for user, space in spaces.items():
            k8s_rig.kubectl("apply", "-n", space, "-f", str(ROLE))
            k8s_rig.bind(user, space, "nemorun")
        benches = {user: k8s(user, namespace=space) for user, space in spaces.items()}
        for bench in benches.values():
            bench.add(secrets=("TOKEN",))
            bench.submit({"TOKEN": VALUE})
        for user, other in (("alice", "bob"), ("bob", "alice")):
            spy = k8s(user, namespace=spaces[other])
            theirs = benches[other].ref()
            for path in (
                spy.api.path("Secret", f"task-{benches[other].id}"),
                spy.api.path("Pod"),
                spy.api.path("ConfigMap", f"bench-{benches[other].id}"),
            ):
                with pytest.raises(Forbidden):
                    spy.api.get(path)
            with pytest.raises(Forbidden, match=f"'{user}' may not list jobs in namespace '{spaces[other]}'"):
                spy.executor.poll([theirs])
            with pytest.raises(Forbidden, match="may not delete configmaps"):
                spy.executor.cancel([theirs])
            assert benches[other].objects("jobs")
    finally:
        remove_namespace(k8s_rig, spaces["bob"])
