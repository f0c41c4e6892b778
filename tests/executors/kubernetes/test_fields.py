"""The Kubernetes executor's fields: checked before anything connects, by name, with what is allowed."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

import nemorun as run
from nemorun.errors import ConfigError
from nemorun.executors.configured import executor_config
from nemorun.executors.kubernetes import KubernetesExecutor
from nemorun.job import Resources
from nemorun.workspace import find_workspace

from .submissions import executor, job


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("namespace", "Nemo", "lower-case"),
        ("namespace", "x" * 64, "63"),
        ("context", "", "context"),
        ("kubeconfig", "/no/such/file", "no file"),
        ("kind", "pytorch", "did you mean 'pytorchjob'"),
        ("kind", None, "'jobset'"),
        ("runtime", "", "a name"),
        ("runtime_patch", "podTemplateOverride", "did you mean 'podTemplateOverrides'"),
        ("image", "has space", "an image"),
        ("image_pull_policy", "always", "did you mean 'Always'"),
        ("image_pull_secrets", "ngc", "a list"),
        ("image_pull_secrets", ["NGC"], "'NGC'"),
        ("container_name", "a.b", "a name"),
        ("nodes", 0, "at least 1"),
        ("nodes", -3, "at least 1"),
        ("nodes", "x", "whole number"),
        ("nodes", True, "whole number"),
        ("ntasks_per_node", 1.5, "whole number"),
        ("num_gpus", -1, "at least 0"),
        ("gpu_resource", "nvidia.com/", "nvidia.com/gpu"),
        ("cpus", 0, "500m"),
        ("cpus", "8 cores", "500m"),
        ("cpus", float("nan"), "500m"),
        ("memory", "64GB", "64Gi"),
        ("memory", 64, "64Gi"),
        ("shm_size", "-1Gi", "64Gi"),
        ("extended_resources", {"rdma/hca": -1}, "rdma/hca"),
        ("extended_resources", {"rdma hca": 1}, "'rdma hca'"),
        ("env_from_secrets", ["a/b"], "'a/b'"),
        ("env_vars", {"A=B": "x"}, "'A=B'"),
        ("env_vars", {"A": 1}, "must be text"),
        ("volumes", "pvc:a:/a", "a list"),
        ("volumes", ["pcv:a:/a"], "did you mean 'pvc'"),
        ("volumes", ["/data"], "pvc:CLAIM"),
        ("volumes", [3], "3 is no volume"),
        ("volumes", ["pvc:a"], "pvc:CLAIM:/path"),
        ("volumes", ["pvc:A_b:/a"], "'A_b' is not the name of an object"),
        ("volumes", ["pvc:a:data"], "'data' is not a full path"),
        ("volumes", ["pvc:a:/a:rw:x"], "has not the form"),
        ("volumes", ["pvc:a:/a:rx"], "'rx' is no option"),
        ("volumes", ["hostpath:/a"], "hostpath:/host:/path"),
        ("volumes", ["hostpath:a:/a"], "'a' is not a full path"),
        ("volumes", ["emptydir:/a:big"], "'big' is no option"),
        ("volumes", ["nfs:nas:/a"], "nfs:SERVER:/export:/path"),
        ("volumes", ["pvc:a:/a", "pvc:b:/a/"], "another one at /a"),
        ("volumes", ["pvc:a:/nemorun/run"], "nothing can be mounted at /nemorun/run"),
        ("volumes", ["pvc:a:/"], "nothing can be mounted at /"),
        ("run_dir", "/results", "pvc:CLAIM:/results"),
        ("run_dir", "results", "full path"),
        ("code", "tar", "'configmap', 'pvc', 'image'"),
        ("code", "pvc", "run_dir"),
        ("workdir", "here", "full path"),
        ("node_selector", {"a b": "c"}, "'a b'"),
        ("node_selector", {"a": "b c"}, "'b c'"),
        ("node_selector", {"a": True}, "'True'"),
        ("tolerations", ["a=b:NoShedule"], "did you mean 'NoSchedule'"),
        ("tolerations", ["=b"], "not a toleration"),
        ("tolerations", [{"keys": "a"}], "did you mean 'key'"),
        ("affinity", {"nodeAffinty": {}}, "did you mean 'nodeAffinity'"),
        ("priority_class", "High!", "a name"),
        ("service_account", "A", "a name"),
        ("queue", "a/b", "a name"),
        ("topology", "required:rack", "set queue as well"),
        ("topology", "require:rack", "did you mean 'required'"),
        ("topology", "slice:rack", "slice:LABEL:PODS"),
        ("security_context", {"runAsUsr": 1}, "did you mean 'runAsUser'"),
        ("host_network", "yes", "neither True nor False"),
        ("labels", {"team": "a b"}, "'a b'"),
        ("labels", {"nemorun/task": "x"}, "nemorun sets itself"),
        ("labels", {"kueue.x-k8s.io/queue-name": "x"}, "set queue instead"),
        ("annotations", {"a": 1}, "write '1'"),
        ("backoff_limit", -1, "at least 0"),
        ("active_deadline", 0, "at least 1"),
        ("ttl_after_finished", "1h", "whole number"),
        ("grace_period", -1, "at least 0"),
        ("start_timeout", 0, "at least 1"),
        ("retries", -1, "at least 0"),
        ("pod_overrides", {"specs": {}}, "did you mean 'spec'"),
        ("pod_overrides", {"spec": []}, "not a mapping"),
        ("pod_overrides", {"spec": {"containers": [{"image": "x"}]}}, "has no 'name'"),
        ("pod_overrides", {"spec": {"containers": {}}}, "not a list"),
        ("pod_overrides", {"spec": {"$setElementOrder/env": []}}, "only $patch"),
        ("pod_overrides", {"spec": {"hostPID": object()}}, "not plain data"),
    ],
)
def test_a_bad_value_is_refused_by_name(field: str, value: Any, message: str) -> None:
    made = dataclasses.replace(KubernetesExecutor(image="x"), **{field: value})
    with pytest.raises(ConfigError, match=rf"^{field}.*{re.escape(message)}"):
        made.validate()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"run_dir": "/a/b", "volumes": ["pvc:x:/a:ro"]}, "run_dir: '/a/b' is not on a volume"),
        ({"run_dir": "/ab", "volumes": ["pvc:x:/a"]}, "run_dir: '/ab' is not on a volume"),
        ({"run_dir": "/a", "volumes": ["emptydir:/a"]}, "ends with its pod"),
        ({"kind": "pytorchjob", "container_name": "nemo"}, "a PyTorchJob's is 'pytorch'"),
        ({"kind": "trainjob", "priority_class": "high"}, "priority_class: 'high' cannot be set"),
        ({"kind": "trainjob", "retries": 1}, "retries: 1 cannot be set"),
        ({"kind": "trainjob", "active_deadline": 60}, "needs Trainer 2.2"),
        ({"kind": "trainjob", "pod_overrides": {"spec": {"hostPID": True}}}, "cannot set 'hostPID'"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        executor(**fields)


def test_a_task_that_does_not_go_with_the_fields_is_refused() -> None:
    with pytest.raises(ConfigError, match="image: None is not an image"):
        KubernetesExecutor().check_job(job())
    with pytest.raises(ConfigError, match="2 retries cannot be with kind='trainjob'"):
        executor(kind="trainjob").check_job(job(retries=2))
    with pytest.raises(ConfigError, match="env of task 'train': 'A-B'"):
        executor().check_job(job(env={"A-B": "1"}))
    executor().check_job(job(retries=2))


def test_resources_come_from_the_executor_or_the_task() -> None:
    assert executor().resources(None) == Resources(1, 1, 0)
    assert executor(nodes=2, num_gpus=8).resources(Resources(2, 4, 8)) == Resources(2, 4, 8)
    assert executor(ntasks_per_node=8, num_gpus=8).resources(None) == Resources(1, 8, 8)
    with pytest.raises(ConfigError, match="num_gpus: the executor has 8, but the task asks for 4"):
        executor(num_gpus=8).resources(Resources(1, 4, 4))


def test_it_can_be_named_without_settings(tmp_path: Path) -> None:
    for name in ("kubernetes", "k8s"):
        built = executor_config(name, find_workspace(tmp_path)).build()
        assert built == KubernetesExecutor() and built.type == "kubernetes"


def test_places() -> None:
    assert executor(nodes=2).place() == executor(image="y").place()
    places = {executor(**one).place() for one in ({}, {"namespace": "a"}, {"context": "b"})}
    assert len(places) == 3


def test_the_way_users_write_it() -> None:
    k8s = run.KubernetesExecutor(namespace="nemo-training", image="nvcr.io/nvidia/nemo:24.05", num_gpus=8)
    k8s.validate()
    assert k8s.resources(None).gpus_per_node == 8


def test_a_program_that_only_the_image_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = run.Experiment("x", executor=executor(code="image"))
    experiment.add(run.Command(["of-the-image", "-v"]))
    assert "- of-the-image\n" in experiment.dry_run()
