"""Whatever breaks between launcher and API server: submitted exactly once, and gone when cancelled."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from nemorun.errors import SubmitUnclear
from nemorun.executors.kubernetes import api
from nemorun.job import Resources
from tests.executors.kubernetes.conftest import K8sBench, eventually
from tests.k8s_proxy import FAULTS, faulty_proxy
from tests.k8s_rig import K8sRig

Make = Callable[..., K8sBench]


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_at_each_request(fault: str, k8s: Make, k8s_rig: K8sRig, tmp_path: Path) -> None:
    """Every request goes wrong once, and is right when it is made again."""
    seen: set[tuple[str, str]] = set()

    def once(method: str, path: str) -> str | None:
        if (method, path) in seen:
            return None
        seen.add((method, path))
        return fault

    with faulty_proxy(k8s_rig.facts, once) as proxy:
        bench = k8s(kubeconfig=proxy.kubeconfig(tmp_path))
        bench.add(secrets=("TOKEN",), resources=Resources(nodes=2))
        assert bench.submit({"TOKEN": "x"}) == {"task": f"job/{bench.namespace}/task-{bench.id}"}
        assert sorted(proxy.created.values()) == [1, 1, 1, 1]  # parent, secret, service, job
        assert len(bench.objects("jobs,services,configmaps,secrets")) == 4
        bench.executor.cancel(bench.refs)
        eventually(lambda: not bench.objects())
        assert proxy.faults[fault] >= 7


def test_a_connection_that_does_not_come_back_is_unclear(
    k8s: Make, k8s_rig: K8sRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "PATIENCE", 0.5)
    dead = False

    def die_with_the_job(method: str, path: str) -> str | None:
        nonlocal dead
        dead = dead or (method == "POST" and path.endswith("/jobs"))
        return "cut after" if dead else None

    with faulty_proxy(k8s_rig.facts, die_with_the_job) as proxy:
        bench = k8s(kubeconfig=proxy.kubeconfig(tmp_path))
        bench.add()
        with pytest.raises(SubmitUnclear, match="may have been created or not"):
            bench.submit()
        assert len(bench.objects("jobs")) == 1
        dead, proxy.choose = False, lambda *_: None
        assert bench.submit()  # finds it
        bench.executor.cancel(bench.refs)
        eventually(lambda: not bench.objects())


def test_random_faults(k8s: Make, k8s_rig: K8sRig, tmp_path: Path) -> None:
    """The short form of `scripts/k8s-faults`."""
    dice = random.Random(4)
    with faulty_proxy(
        k8s_rig.facts, lambda *_: dice.choice(FAULTS) if dice.random() < 0.3 else None
    ) as proxy:
        for _ in range(5):
            bench = k8s(kubeconfig=proxy.kubeconfig(tmp_path))
            bench.add("a")
            bench.add("b", resources=Resources(nodes=2))
            bench.submit()
            assert len(bench.objects("jobs")) == 2
            bench.executor.cancel(bench.refs)
            eventually(lambda bench=bench: not bench.objects())
    assert set(proxy.created.values()) == {1}


def test_cancelling_does_not_wait_for_a_garbage_collector_that_sleeps(
    k8s: Make, k8s_rig: K8sRig, tmp_path: Path
) -> None:
    """An owner that cannot be deleted stands in for a collector that does not come."""
    bench = k8s()
    bench.add(secrets=("TOKEN",))
    bench.submit({"TOKEN": "x"})
    parent, finalizer = f"configmap/bench-{bench.id}", '{"metadata": {"finalizers": %s}}'
    words = ("patch", parent, "-n", bench.namespace, "--type=merge", "-p")
    k8s_rig.kubectl(*words, finalizer % '["nemorun.test/hold"]')
    try:
        bench.executor.cancel(bench.refs)
        assert not bench.objects("jobs,secrets")
    finally:
        k8s_rig.kubectl(*words, finalizer % "null")
