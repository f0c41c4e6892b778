"""A bench to submit jobs from to the real Slurm of the rig, each experiment in a folder of its own there."""

from __future__ import annotations

import shlex
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from nemorun.executors.slurm import SlurmExecutor
from nemorun.executors.slurm.cluster import Cluster, cluster_of
from nemorun.executors.slurm.paths import remote_experiment_dir
from nemorun.job import JobRef, JobSpec, JobStatus
from tests.slurm_rig import Rig, eventually

#: Seconds after which a test gives up on what must happen.
PATIENCE = 60.0


class SlurmBench:
    """One user's experiment: tasks are added, submitted together, and waited for.

    Its jobs are small, so that many fit on the rig at once.
    """

    def __init__(self, rig: Rig, folder: Path, user: str, **fields: Any) -> None:
        self.rig, self.user = rig, user
        self.id = f"t{uuid.uuid4().hex[:8]}"
        #: The record's folder here; what stands in its `tasks/<name>` is sent.
        self.folder = folder / f"bench-{self.id}"
        self.executor = SlurmExecutor(
            **{
                "tunnel": f"{user}@login",
                "transport": "paramiko",
                "ssh_config": str(rig.config),
                "job_dir": f"~/nr-{self.id}",
                "time": "10",
                "mem": "100",
                **fields,
            }
        )
        self.jobs: list[JobSpec] = []

    @property
    def cluster(self) -> Cluster:
        return cluster_of(self.executor)

    @property
    def home(self) -> Path:
        """`job_dir`, as this machine sees it (in the user's home, as given)."""
        return self.rig.home_of(self.user) / self.executor.job_dir.removeprefix("~/")

    def remote(self, name: str = "") -> Path:
        """A file of the experiment's folder on the cluster, as this machine sees it."""
        return self.home / remote_experiment_dir(f"{self.id}.x", str(self.folder / "tasks" / "x")) / name

    def run_dir(self, task: str = "task") -> Path:
        """The task's folder on the cluster, as this machine sees it."""
        return self.remote(f"tasks/{task}")

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
        fields = {"resources": self.executor.resources(None), "cwd": str(self.folder), **fields}
        job = JobSpec(name=name, token=f"{self.id}.{name}", run_dir=str(run_dir), **fields)
        self.jobs.append(job)
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

    def on_login(self, script: str) -> str:
        """What a script prints as this user on the login host; it must succeed."""
        return self.cluster.connection.run(script, check=True).stdout

    def queued(self) -> dict[str, str]:
        """Job or array element -> name, of this experiment's jobs that are in the queue."""
        listed = self.on_login(f"squeue --me --noheader --array --format='%i %j' | grep '\\.{self.id}$' || :")
        return {words[0]: words[1] for words in map(str.split, listed.splitlines())}

    def clean(self) -> None:
        """Cancel what is left in the queue, and delete the folder there."""
        if not self.home.exists():
            return
        folder = shlex.quote(str(self.home.relative_to(self.rig.home_of(self.user))))
        jobs = " ".join(sorted({name.partition("_")[0] for name in self.queued()}))
        cancel = f"scancel {jobs}; " if jobs else ""
        # what is being cancelled may still write there
        self.on_login(f"{cancel}cd; rm -rf {folder} || {{ sleep 1; rm -rf {folder}; }}")


@pytest.fixture
def slurm(rig: Rig, tmp_path: Path) -> Iterator[Callable[..., SlurmBench]]:
    """Makes benches: slurm("bob", nodes=2). What they leave on the cluster is removed."""
    made: list[SlurmBench] = []

    def make(user: str = "alice", **fields: Any) -> SlurmBench:
        made.append(SlurmBench(rig, tmp_path, user, **fields))
        return made[-1]

    yield make
    for bench in made:
        bench.clean()


@pytest.fixture
def bench(slurm: Callable[..., SlurmBench]) -> SlurmBench:
    return slurm()


__all__ = ["PATIENCE", "SlurmBench", "eventually"]
