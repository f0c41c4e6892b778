"""A bench to run jobs on: real supervisors, ranks and files, in a folder of the test's own."""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from nemorun.executors.base import LogChunk, LogOffsets
from nemorun.executors.local import LocalExecutor
from nemorun.job import JobRef, JobSpec, JobStatus, Resources

#: Seconds after which a test gives up on what must happen.
PATIENCE = 60.0


def wait_until(condition: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """The condition's value as soon as it is true; fails the test after `patience` seconds."""
    give_up = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.005)
    return value


def text_in(path: Path) -> str:
    """The line that a process has written, whole, into a file."""
    return str(
        wait_until(lambda: path.exists() and path.read_text().endswith("\n") and path.read_text())
    ).strip()


def alive(pid: int) -> bool:
    """Is there such a process? A zombie is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Bench:
    """One experiment folder; jobs are added, submitted together, and waited for."""

    def __init__(self, folder: Path, **fields: Any) -> None:
        self.folder = folder
        self.executor = LocalExecutor(**{"grace_period": 2.0, "backoff": 0.01, **fields})
        self.jobs: list[JobSpec] = []
        #: Unique: test runs at the same time must not find each other's processes by their tokens.
        self.id = f"t{uuid.uuid4().hex}"

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
        job = JobSpec(name=name, token=f"{self.id}.{name}", run_dir=str(run_dir), **fields)
        self.jobs.append(job)
        return self.ref(name)

    def ref(self, name: str = "task") -> JobRef:
        job = next(job for job in self.jobs if job.name == name)
        return JobRef(job.name, job.token, job.run_dir)

    @property
    def refs(self) -> list[JobRef]:
        return [self.ref(job.name) for job in self.jobs]

    def submit(self, secrets: Mapping[str, str] | None = None) -> None:
        self.executor.submit(self.executor.render(self.jobs), secrets or {})

    def status(self, name: str = "task") -> JobStatus:
        ref = self.ref(name)
        return self.executor.poll([ref])[ref.token]

    def wait(self) -> dict[str, JobStatus]:
        """Name -> status, once all have ended."""

        def ended() -> dict[str, JobStatus] | None:
            statuses = self.executor.poll(self.refs)
            return statuses if all(status.state.ended for status in statuses.values()) else None

        statuses = wait_until(ended)
        return {ref.name: statuses[ref.token] for ref in self.refs}

    def run(
        self, python: str | None = None, secrets: Mapping[str, str] | None = None, **fields: Any
    ) -> JobStatus:
        """Add one task, submit it, and wait for its end."""
        self.add(python=python, **fields)
        self.submit(secrets)
        return self.wait()["task"]

    def chunks(
        self, ref: JobRef | None = None, offsets: LogOffsets | None = None, rank: int | None = None
    ) -> list[LogChunk]:
        return [chunk for _, chunk in self.executor.logs({ref or self.ref(): offsets or {}}, rank)]

    def log(self, name: str = "task", rank: int = 0) -> str:
        return "".join(chunk.text for chunk in self.chunks(self.ref(name), rank=rank))

    def path(self, name: str) -> Path:
        return self.folder / name

    def supervisor(self) -> int:
        """The supervisor's pid, once it has written it down."""
        return int(wait_until(lambda: self.events("submitted"))[0]["pid"])

    def events(self, kind: str) -> list[dict[str, Any]]:
        journal = self.folder / "local" / "journal.jsonl"
        lines = journal.read_text().split("\n")[:-1] if journal.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def processes(self) -> list[int]:
        """Every process of these jobs, wherever it has gone."""
        marks = {f"NEMORUN_TOKEN={job.token}".encode() for job in self.jobs}
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    if marks & set((entry / "environ").read_bytes().split(b"\0")):
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Makes benches; what still runs on them at the end is cancelled."""
    benches: list[Bench] = []

    def make(name: str = "bench", **fields: Any) -> Bench:
        folder = tmp_path / name
        folder.mkdir()
        benches.append(Bench(folder, **fields))
        return benches[-1]

    yield make
    for bench in benches:
        if (bench.folder / "local").exists():
            bench.executor.cancel(bench.refs)


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()
