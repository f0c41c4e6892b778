"""A bench to submit jobs from to the real API server of the rig, in a namespace of the test's own."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from nemorun.executors.kubernetes import KubernetesExecutor
from nemorun.executors.kubernetes.api import Api, api_of
from nemorun.executors.kubernetes.manifests import to_yaml
from nemorun.job import JobRef, JobSpec, JobStatus, Resources
from tests.executors.kubernetes.crds import CRDS
from tests.k8s_rig import K8sRig
from tests.slurm_rig import eventually

#: Seconds after which a test gives up on what must happen.
PATIENCE = 60.0
#: The kinds of objects that a submission may leave.
KINDS = "jobs,pods,services,secrets,configmaps"


class K8sBench:
    """One user's experiment: tasks are added, submitted together, and waited for."""

    def __init__(self, rig: K8sRig, namespace: str, folder: Path, user: str, **fields: Any) -> None:
        self.rig, self.namespace = rig, namespace
        self.id = f"t{uuid.uuid4().hex[:7]}"
        #: The record's folder here.
        self.folder = folder / f"bench-{self.id}"
        fields = {"kubeconfig": str(rig.kubeconfig(user)), "namespace": namespace, **fields}
        self.executor = KubernetesExecutor(**{"image": rig.image, **fields})
        self.jobs: list[JobSpec] = []

    @property
    def api(self) -> Api:
        return api_of(self.executor)

    def add(
        self, name: str = "task", python: str | None = None, yaml: str | None = None, **fields: Any
    ) -> JobRef:
        """Add a job: Python source to run as a command, the text of a task.yaml, or `command=`."""
        run_dir = self.folder / "tasks" / name
        run_dir.mkdir(parents=True, exist_ok=True)
        if python is not None:
            fields["command"] = (sys.executable, "-c", python)
        if yaml is not None:
            (run_dir / "task.yaml").write_text(yaml, encoding="utf-8")
            fields["task"] = str(run_dir / "task.yaml")
        fields = {"resources": Resources(), "cwd": str(self.folder), **fields}
        if "task" not in fields and "command" not in fields:
            fields["command"] = ("true",)
        self.jobs.append(JobSpec(name=name, token=f"{self.id}.{name}", run_dir=str(run_dir), **fields))
        return self.ref(name)

    def ref(self, name: str = "task") -> JobRef:
        job = next(job for job in self.jobs if job.name == name)
        return JobRef(job.name, job.token, job.run_dir)

    @property
    def refs(self) -> list[JobRef]:
        return [self.ref(job.name) for job in self.jobs]

    def submit(self, secrets: Mapping[str, str] | None = None) -> dict[str, str]:
        return self.executor.submit(self.executor.render(self.jobs), secrets or {})

    def status(self, name: str = "task") -> JobStatus:
        ref = self.ref(name)
        return self.executor.poll([ref])[ref.token]

    def wait(self, seconds: float = PATIENCE) -> dict[str, JobStatus]:
        """Name -> status, once all have ended."""

        def ended() -> dict[str, JobStatus] | None:
            statuses = self.executor.poll(self.refs)
            return statuses if all(status.state.ended for status in statuses.values()) else None

        statuses = eventually(ended, seconds)
        return {ref.name: statuses[ref.token] for ref in self.refs}

    def log(self, name: str = "task", rank: int = 0) -> str:
        """What the rank has written, as the executor reads it."""
        return "".join(chunk.text for _, chunk in self.executor.logs({self.ref(name): {}}, rank))

    def objects(self, kinds: str = KINDS) -> list[dict[str, Any]]:
        """What is there of this experiment and is not being deleted."""
        listed = self.rig.get(kinds, self.namespace, "-l", f"nemorun/experiment={self.id}")
        return [one for one in listed if "deletionTimestamp" not in one["metadata"]]


@pytest.fixture
def k8s(k8s_rig: K8sRig, k8s_namespace: str, tmp_path: Path) -> Iterator[Callable[..., K8sBench]]:
    """Makes benches: k8s("alice", nodes=2). By default as the administrator, in the test's own namespace."""

    def make(user: str = "admin", **fields: Any) -> K8sBench:
        return K8sBench(k8s_rig, fields.pop("namespace", k8s_namespace), tmp_path, user, **fields)

    yield make


@pytest.fixture(scope="module")
def crds(k8s_rig: K8sRig) -> Iterator[None]:
    """The kinds of Kubeflow, JobSet and Kueue, with the fields that their releases have."""
    there = k8s_rig.kubectl("get", "crds", "-o", "name")
    mine = [crd for crd in CRDS if f"/{crd['metadata']['name']}" not in there]
    if mine:
        k8s_rig.kubectl("create", "-f", "-", stdin=to_yaml(mine))
        names = [f"crd/{crd['metadata']['name']}" for crd in mine]
        k8s_rig.kubectl("wait", "--for=condition=established", *names)
    yield
    if mine:
        k8s_rig.kubectl("delete", *names)


__all__ = ["KINDS", "PATIENCE", "K8sBench", "eventually"]
