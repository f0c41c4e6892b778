"""What `executors check` says of a real API server, and what the documented role allows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from nemorun.errors import SubmitError
from nemorun.executors.kubernetes.quantities import amount
from nemorun.executors.kubernetes.rights import Right, needed
from nemorun.executors.kubernetes.workloads import KINDS
from nemorun.job import JobState, Resources
from tests.executors.kubernetes.conftest import K8sBench, eventually
from tests.k8s_rig import K8sRig

Make = Callable[..., K8sBench]
ROLE = Path(__file__).parents[3] / "docs" / "kubernetes-rbac.yaml"


def failed(bench: K8sBench) -> dict[str, str]:
    return {line.name: line.message for line in bench.executor.check() if not line.ok}


def rules() -> list[dict[str, list[str]]]:
    return list(yaml.safe_load(ROLE.read_text())["rules"])


@pytest.fixture
def grant(k8s_rig: K8sRig, k8s_namespace: str) -> Iterator[Callable[..., None]]:
    """Gives alice the documented role in the test's namespace, without one right."""

    def give(without: Right | None = None) -> None:
        role = yaml.safe_load(ROLE.read_text())
        for rule in rules():
            if without and without.resource in rule["resources"] and without.group in rule["apiGroups"]:
                others = [one for one in rule["resources"] if one != without.resource]
                role["rules"].remove(rule)
                role["rules"].append({**rule, "resources": others})
                verbs = [verb for verb in rule["verbs"] if verb != without.verb]
                role["rules"].append({**rule, "resources": [without.resource], "verbs": verbs})
        role["rules"] = [rule for rule in role["rules"] if rule["resources"] and rule["verbs"]]
        k8s_rig.kubectl("apply", "-n", k8s_namespace, "-f", "-", stdin=json.dumps(role))
        k8s_rig.bind("alice", k8s_namespace, "nemorun")

    yield give


def test_the_role_grants_what_is_used_and_no_more() -> None:
    granted = {
        Right(verb, resource, group)
        for rule in rules()
        for verb in rule["verbs"]
        for resource in rule["resources"]
        for group in rule["apiGroups"]
    }
    for_checks = {
        Right("get", "persistentvolumeclaims"),
        Right("list", "resourcequotas"),
        Right("list", "localqueues", "kueue.x-k8s.io"),
    }
    assert granted == for_checks.union(*(needed(kind, "research") for kind in KINDS))


def test_a_user_with_exactly_the_role_can_run_everything(
    k8s: Make, grant: Callable[..., None], k8s_node: K8sRig
) -> None:
    grant()
    bench = k8s("alice", num_gpus=0)
    assert not failed(bench)
    bench.executor.node_selector = {"rig/kind": "real"}
    bench.add(command=("sh", "-c", 'echo "the token has ${#TOKEN} letters"'), secrets=("TOKEN",))
    bench.add("long", command=("sleep", "600"), resources=Resources(nodes=2))
    bench.submit({"TOKEN": "hidden"})
    eventually(lambda: bench.status().state.ended, 60)
    assert bench.status().state is JobState.SUCCEEDED
    assert "the token has 6 letters" in bench.log()
    bench.executor.cancel([bench.ref("long")])
    eventually(lambda: bench.status("long").state is JobState.CANCELLED, 30)


@pytest.mark.parametrize(
    "lacking",
    [
        Right("create", "configmaps"),
        Right("create", "secrets"),
        Right("create", "services"),
        Right("create", "jobs", "batch"),
    ],
)
def test_a_missing_right_is_named(k8s: Make, grant: Callable[..., None], lacking: Right) -> None:
    grant(lacking)
    bench = k8s("alice")
    of = f" of {lacking.group}" if lacking.group else ""
    assert f"{lacking.verb} on {lacking.resource}{of} in" in failed(bench)["rights"]
    bench.add(secrets=("TOKEN",), resources=Resources(nodes=2))
    with pytest.raises(SubmitError, match=f"lacks the verb '{lacking.verb}' on '{lacking.resource}'"):
        bench.submit({"TOKEN": "hidden"})
    eventually(lambda: not bench.objects())


@pytest.mark.parametrize(
    "lacking", [Right("delete", "configmaps"), Right("list", "jobs", "batch"), Right("get", "pods/log")]
)
def test_what_is_needed_later_is_asked_for_before(
    k8s: Make, grant: Callable[..., None], lacking: Right
) -> None:
    grant(lacking)
    bench = k8s("alice")
    assert f"may not {lacking.verb} on {lacking.resource}" in failed(bench)["rights"]
    bench.add(resources=Resources(nodes=2))
    with pytest.raises(SubmitError, match=f"lacks the verb '{lacking.verb}' on '{lacking.resource}'") as no:
        bench.submit()
    assert "nothing was submitted" in str(no.value) and not bench.objects()


def test_what_is_not_needed_now_is_no_hindrance(k8s: Make, grant: Callable[..., None]) -> None:
    grant(Right("create", "pods/exec"))
    bench = k8s("alice")
    assert "create on pods/exec" in failed(bench)["rights"]
    bench.add()
    assert bench.submit()


def test_without_any_right(k8s: Make) -> None:
    bench = k8s("bob")
    lacking = [line.message for line in bench.executor.check() if line.name == "rights"]
    assert len(lacking) == len({(right.resource, right.group) for right in needed("job")})
    bench.add()
    with pytest.raises(SubmitError, match="user 'bob' may not create jobs in namespace"):
        bench.submit()


def test_what_is_not_there(k8s: Make) -> None:
    bench = k8s(
        kind="pytorchjob",
        queue="research",
        volumes=["pvc:training-data:/data"],
        image_pull_secrets=["ngc"],
        nodes=1000,
        num_gpus=8,
    )
    said = failed(bench)
    assert "knows no PyTorchJob" in said["PyTorchJob"]
    assert "no Kueue" in said["queue"]
    assert "no claim 'training-data'" in said["volumes"]
    assert "no secret 'ngc'" in said["secrets"]
    assert "asks for 1000 pods with 8 each, and there is room for" in said["nodes"]
    assert failed(k8s(namespace="kr-nowhere")) == {
        "namespace": "there is no namespace 'kr-nowhere': ask for it, or set 'namespace' to one you have"
    }


def test_a_queue_without_kueue_is_refused(k8s: Make) -> None:
    bench = k8s(queue="research")
    bench.add()
    with pytest.raises(SubmitError, match="the cluster has no Kueue"):
        bench.submit()
    assert not bench.objects()


def test_a_quota(k8s: Make, k8s_rig: K8sRig) -> None:
    bench = k8s(nodes=2, num_gpus=8)
    hard = "requests.nvidia.com/gpu=16,pods=10"
    k8s_rig.kubectl("create", "quota", "gpus", f"--hard={hard}", "-n", bench.namespace)
    eventually(lambda: any(line.name == "quota" for line in bench.executor.check()))
    assert "quota" not in failed(bench)
    bench.executor.nodes = 3
    assert "a task asks for 24" in failed(bench)["quota"]


def test_no_server(k8s: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemorun.executors.kubernetes.api.FIRST_PATIENCE", 0.5)
    config = tmp_path / "config"
    text = k8s().rig.admin.read_text()
    config.write_text(text.replace(":16443", ":1"))
    (line,) = k8s(kubeconfig=str(config)).executor.check()
    assert not line.ok and "cannot be reached" in line.message


@pytest.mark.parametrize(
    ("text", "value"), [("500m", 0.5), ("64Gi", 64 * 2**30), (8, 8), ("1e3", 1000), ("2k", 2000)]
)
def test_amounts(text: str | int, value: float) -> None:
    assert amount(text) == value
