"""Submissions to a real API server: each object once, all of it or nothing, and gone when cancelled."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemorun.errors import ConfigError, SubmitError
from nemorun.executors.kubernetes.code import LIMIT
from nemorun.job import Reason, Resources
from tests.executors.kubernetes.conftest import KINDS, K8sBench, eventually
from tests.k8s_rig import K8sRig

Make = Callable[..., K8sBench]


def archive(folder: Path, size: int = 100) -> str:
    """A code archive that does not get smaller by packing."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=0) as tar:
        member = tarfile.TarInfo("code.py")
        member.size = size
        tar.addfile(member, io.BytesIO(os.urandom(size)))
    path = folder / f"{hashlib.sha256(packed.getvalue()).hexdigest()}.tar.gz"
    path.write_bytes(packed.getvalue())
    return str(path)


def names(bench: K8sBench, kinds: str = KINDS) -> set[str]:
    return {f"{one['kind']}/{one['metadata']['name']}" for one in bench.objects(kinds)}


@pytest.mark.parametrize("nodes", [2, 128])
def test_few_calls_whatever_the_number_of_nodes(k8s: Make, tmp_path: Path, nodes: int) -> None:
    """Dry run, rights and quota, and the task's three objects; code and secrets are an object more each."""
    bench = k8s()
    bench.add("plain", yaml="x: 1", resources=Resources(nodes=nodes, gpus_per_node=8))
    before = bench.api.calls
    assert bench.submit() == {"plain": f"job/{bench.namespace}/plain-{bench.id}"}
    assert bench.api.calls - before == 6
    (job,) = bench.objects("jobs")
    assert job["spec"]["parallelism"] == nodes

    bench = k8s()
    bench.add(
        yaml="x: 1",
        code=archive(tmp_path),
        secrets=("TOKEN",),
        resources=Resources(nodes=nodes, gpus_per_node=8),
    )
    before = bench.api.calls
    bench.submit({"TOKEN": "hidden"})
    assert bench.api.calls - before == 8


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"volumes": ["pvc:training-data:/data"]}, "has no claim 'training-data'; create it"),
        ({"image_pull_secrets": ["ngc"]}, "has no secret 'ngc'; create it"),
        ({"env_from_secrets": ["tokens"], "queue": "research"}, "no Kueue.*; .*no secret 'tokens'"),
    ],
)
def test_what_a_task_names_must_be_there(k8s: Make, fields: dict[str, Any], words: str) -> None:
    bench = k8s(**fields)
    bench.add()
    with pytest.raises(SubmitError, match=words):
        bench.submit()
    assert not bench.objects()


def test_what_a_quota_can_never_give_is_refused(k8s: Make, k8s_rig: K8sRig) -> None:
    bench = k8s(node_selector={"rig/kind": "fake"})
    hard = "--hard=requests.nvidia.com/gpu=16"
    k8s_rig.kubectl("create", "quota", "gpus", hard, "-n", bench.namespace)
    quota = bench.api.path("ResourceQuota", "gpus")
    eventually(lambda: "hard" in bench.api.get(quota).get("status", {}))
    bench.add("large", resources=Resources(nodes=3, gpus_per_node=8))
    with pytest.raises(SubmitError, match=r"'large' asks for 24 requests\.nvidia\.com/gpu, .* 'gpus'.*16"):
        bench.submit()
    assert not bench.objects()
    # what others hold now is no reason: tasks wait for it, and `status` says so
    for _ in range(2):
        waiting = k8s(node_selector={"rig/kind": "fake"})
        waiting.add("fits", resources=Resources(nodes=2, gpus_per_node=8))
        waiting.submit()
    eventually(lambda: waiting.status("fits").reason is Reason.QUOTA)


def test_what_is_sent(k8s: Make, tmp_path: Path) -> None:
    bench = k8s()
    bench.add(yaml="x: 1", code=archive(tmp_path), resources=Resources(nodes=2))
    bench.submit()
    objects = {
        f"{one['kind']} {one['metadata']['name']}": one for one in bench.objects("jobs,services,configmaps")
    }
    parent = objects.pop(f"ConfigMap bench-{bench.id}")
    assert set(parent["data"]) == {"start.sh", "task.task.yaml"} and set(parent["binaryData"]) == {
        "nemorun.tar.gz"
    }
    assert len(objects) == 3
    for one in objects.values():
        (owner,) = one["metadata"]["ownerReferences"]
        assert owner["uid"] == parent["metadata"]["uid"]


def test_each_task_gets_its_code_in_the_way_of_its_own_executor(k8s: Make, tmp_path: Path) -> None:
    bench = k8s(code="image", workdir="/opt/code", node_selector={"rig/kind": "fake"})
    code = archive(tmp_path)
    for name in ("inside", "sent"):
        bench.add(name, yaml="x: 1", code=code)
    own = {"sent": replace(bench.executor, code="configmap", workdir=None)}
    bench.executor.submit(bench.executor.render(bench.jobs, own), {})
    (sent,) = (one for one in bench.objects("configmaps") if "code.tar.gz" in one.get("binaryData", {}))
    mounted = {
        job["metadata"]["name"].partition("-")[0]: "nemorun-code"
        in [volume["name"] for volume in job["spec"]["template"]["spec"]["volumes"]]
        for job in bench.objects("jobs")
    }
    assert mounted == {"inside": False, "sent": True} and sent


def test_a_second_submission_finds_the_first(k8s: Make) -> None:
    bench = k8s()
    bench.add("a")
    bench.add("b", resources=Resources(nodes=2))
    first = bench.submit()
    uids = {one["metadata"]["uid"] for one in bench.objects("jobs,services,configmaps")}
    assert bench.submit() == first
    assert {one["metadata"]["uid"] for one in bench.objects("jobs,services,configmaps")} == uids


def test_all_is_deleted_by_one_call(k8s: Make, tmp_path: Path) -> None:
    bench = k8s()
    bench.add("a", secrets=("TOKEN",), yaml="x: 1", code=archive(tmp_path), resources=Resources(nodes=2))
    bench.add("b")
    bench.submit({"TOKEN": "hidden"})
    eventually(lambda: len(bench.objects("pods")) == 3)
    bench.executor.cancel(bench.refs)
    assert not any(bench.objects("jobs"))
    eventually(lambda: not names(bench))
    bench.executor.cancel(bench.refs)  # once more: nothing is there, and nothing is wrong


def test_one_of_two_is_cancelled(k8s: Make) -> None:
    bench = k8s()
    bench.add("a", secrets=("TOKEN",), resources=Resources(nodes=2))
    bench.add("b")
    bench.submit({"TOKEN": "hidden"})
    bench.executor.cancel([bench.ref("a")])
    eventually(lambda: names(bench, "jobs,services,secrets") == {f"Job/b-{bench.id}"})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"namespace": "kr-nowhere"}, "there is no namespace 'kr-nowhere'"),
        ({"pod_overrides": {"spec": {"restartPolicy": "Always"}}}, "restartPolicy"),
        ({"kind": "pytorchjob"}, "does not know the kind 'pytorchjobs' of 'kubeflow.org'"),
    ],
)
def test_what_the_server_refuses_leaves_nothing(k8s: Make, fields: dict[str, object], said: str) -> None:
    bench = k8s(**fields)
    bench.add()
    with pytest.raises(SubmitError, match=r"nothing was submitted") as refused:
        bench.submit()
    assert said in str(refused.value)
    assert not any(bench.objects())


def test_a_failure_in_the_middle_is_taken_back(k8s: Make, k8s_rig: K8sRig) -> None:
    bench = k8s()
    k8s_rig.kubectl(
        "create", "quota", "none", "--hard=secrets=1", "-n", bench.namespace
    )  # an account's token
    bench.add(secrets=("TOKEN",))
    with pytest.raises(SubmitError, match="exceeded quota"):
        bench.submit({"TOKEN": "hidden"})
    eventually(lambda: not names(bench))


def test_an_object_of_somebody_else_is_left_alone(k8s: Make, k8s_rig: K8sRig) -> None:
    bench = k8s()
    bench.add()
    k8s_rig.kubectl("create", "job", f"task-{bench.id}", "--image=x", "-n", bench.namespace)
    with pytest.raises(SubmitError, match=f"has a Job 'task-{bench.id}' that does not belong"):
        bench.submit()
    (left,) = k8s_rig.get("jobs", bench.namespace)
    assert "ownerReferences" not in left["metadata"]


def test_too_much_code_is_refused_before_anything_is_sent(k8s: Make, tmp_path: Path) -> None:
    bench = k8s()
    bench.add(code=archive(tmp_path, LIMIT))
    with pytest.raises(ConfigError, match=r"'task' has 1\.1 MB .*set the executor's 'code' to pvc"):
        bench.executor.check_job(bench.jobs[0])
    big = replace(bench.executor, code="image")
    big.check_job(bench.jobs[0])


def test_code_reaches_a_volume(k8s: Make, k8s_node: K8sRig, tmp_path: Path) -> None:
    """More than one ConfigMap holds; a folder of the node stands in for a claim."""
    folder = tmp_path / "volume"
    folder.mkdir()
    bench = k8s(code="pvc", run_dir="/data", volumes=[f"hostpath:{folder}:/data"])
    bench.executor.node_selector = {"rig/kind": "real"}
    code = archive(tmp_path, 3 * LIMIT)
    bench.add(code=code, command=("true",))
    bench.submit()
    arrived = folder / "code" / Path(code).name
    eventually(arrived.exists, 30)
    assert arrived.read_bytes() == Path(code).read_bytes()
