"""The launcher's side of the local executor: renders the plan, starts the supervisor, reads what it wrote."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from nemorun.errors import ConfigError, StoreError, SubmitError
from nemorun.executors.base import Check, Executor, LogChunk, LogOffsets, Rendered, agreed
from nemorun.executors.local import processes
from nemorun.executors.local.environment import without_others
from nemorun.executors.local.gpus import inventory
from nemorun.executors.local.journal import History, read, try_lock
from nemorun.executors.local.plan import Plan, task_plan
from nemorun.executors.local.reconcile import reconcile
from nemorun.executors.times import time_limit
from nemorun.job import JobRef, JobSpec, JobState, JobStatus, Reason, Resources

_CHUNK = 1 << 20
#: Supervisors that this process has started: asked for now and then, so that they do not stay as zombies.
_started: list[subprocess.Popen[bytes]] = []


@dataclass
class LocalExecutor(Executor):
    """Runs tasks on this machine."""

    type: ClassVar[str] = "local"

    nodes: int | None = None
    """Simulated nodes: each is a group of ranks on this machine with its own NODE_RANK."""
    ntasks_per_node: int | None = None
    """Ranks on each node."""
    gpus_per_node: int | None = None
    """GPUs that each node takes of this machine's; a task waits until enough are free."""
    time: str | int | None = None
    """Limit for one attempt, in Slurm's notations: minutes, hours:minutes:seconds, days-hours …"""
    grace_period: float = 10.0
    """Seconds that ranks have between SIGTERM and SIGKILL."""
    max_parallel: int | None = None
    """Tasks without GPUs that run at once; by default as many as there are CPUs."""
    cwd: str | None = None
    """Folder that the ranks start in; by default the one that the launcher was started in."""
    backoff: float = 1.0
    """Seconds before the first retry; doubled for each further one, up to a minute."""

    def validate(self) -> None:
        least_values = {"nodes": 1, "ntasks_per_node": 1, "gpus_per_node": 0, "max_parallel": 1, "retries": 0}
        for name, least in least_values.items():
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (whole and value >= least):
                raise ConfigError(f"{name}: {value!r} is not a whole number of at least {least}")
        for name in ("grace_period", "backoff"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (number and 0 <= value < float("inf")):
                raise ConfigError(f"{name}: {value!r} is not a number of seconds of at least 0")
        time_limit(self.time)
        _check_environment("env_vars", self.env_vars)
        if self.cwd is not None and not Path(self.cwd).is_dir():
            raise ConfigError(f"cwd: there is no folder {self.cwd!r} on this machine")

    def check_job(self, job: JobSpec) -> None:
        _check_environment(f"env of task '{job.name}'", job.env)
        if job.command and shutil.which(job.command[0]) is None and not Path(job.command[0]).is_file():
            raise ConfigError(f"there is no command '{job.command[0]}' on PATH")
        wanted = job.resources.nodes * job.resources.gpus_per_node
        if wanted and (there := len(inventory(os.environ))) < wanted:
            raise ConfigError(
                f"task '{job.name}' asks for {wanted} GPUs ({job.resources.nodes} nodes with"
                f" {job.resources.gpus_per_node} each), but this machine has {there} to use;"
                " see `nvidia-smi -L` and CUDA_VISIBLE_DEVICES"
            )

    def resources(self, wanted: Resources | None) -> Resources:
        fields = {}
        for name in ("nodes", "ntasks_per_node", "gpus_per_node"):
            theirs = None if wanted is None else getattr(wanted, name)
            if (value := agreed(name, getattr(self, name), theirs)) is not None:
                fields[name] = value
        return Resources(**fields)

    def place(self) -> Hashable:
        """One supervisor looks after all tasks that agree in what is the supervisor's."""
        return (type(self), self.grace_period, self.backoff, self.max_parallel)

    def render(self, jobs: Sequence[JobSpec], own: Mapping[str, Executor] = MappingProxyType({})) -> Rendered:
        tasks = []
        for job in jobs:
            executor = own.get(job.name, self)
            assert isinstance(executor, LocalExecutor)  # what is of this place is of this class
            tasks.append(
                task_plan(
                    job,
                    env={**executor.env_vars, **job.env},
                    cwd=str(Path(executor.cwd).absolute()) if executor.cwd else job.cwd,
                    limit=time_limit(executor.time),
                )
            )
        plan = Plan(float(self.grace_period), float(self.backoff), self.max_parallel, tasks)
        return Rendered(self.type, plan.dumps(), tuple(jobs))

    def submit(self, rendered: Rendered, secrets: Mapping[str, str]) -> dict[str, str]:
        if archives := {job.code for job in rendered.jobs if job.code}:
            from nemorun.packaging.archive import unpack

            for archive in archives:
                unpack(Path(archive))
        folder = _folder(rendered.jobs[0].run_dir)
        text = rendered.text.encode(errors="surrogateescape")
        try:
            folder.mkdir(exist_ok=True, mode=0o700)
            lock = _lock_for_submission(folder, text)
            if lock is not None:
                try:
                    _start_supervisor(folder, text, lock, secrets)
                finally:
                    os.close(lock)
        except OSError as error:
            raise SubmitError(f"the supervisor could not be started, so nothing runs: {error}") from error
        return {job.name: job.token for job in rendered.jobs}

    def poll(self, refs: Sequence[JobRef]) -> dict[str, JobStatus]:
        _started[:] = [supervisor for supervisor in _started if supervisor.poll() is None]
        statuses = {}
        for folder, group in _by_folder(refs).items():
            try:
                statuses.update(_statuses(folder, group))
            except OSError as error:
                unknown = JobStatus(JobState.UNKNOWN, message=f"its journal cannot be kept: {error}")
                statuses.update({ref.token: unknown for ref in group})
        return statuses

    def logs(
        self, reading: Mapping[JobRef, LogOffsets], rank: int | None = None
    ) -> Iterable[tuple[JobRef, LogChunk]]:
        statuses = self.poll(list(reading))  # first: what has ended by now writes no more
        for ref, offsets in reading.items():
            status = statuses[ref.token]
            for attempt, number, path in _log_files(Path(ref.run_dir)):
                if rank is None or number == rank:
                    done = status.state.ended or attempt < status.attempt
                    offset = offsets.get((attempt, number), 0)
                    for chunk in _chunks(path, attempt, number, offset, done):
                        yield ref, chunk

    def excerpt(self, ref: JobRef) -> str:
        task = read(_folder(ref.run_dir) / "journal.jsonl").tasks.get(ref.name)
        if task is None:
            return ""
        path = Path(ref.run_dir) / "logs" / f"attempt-{task.status.attempt}" / f"rank-{task.failed_rank}.log"
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - (1 << 16)))
            lines = file.read().decode(errors="replace").splitlines()
            starts = [at for at, line in enumerate(lines) if line.startswith("Traceback (most recent call ")]
            near = starts and starts[-1] >= len(lines) - 60
            return "\n".join(lines[starts[-1] if near else -20 :])
        return ""

    def cancel(self, refs: Sequence[JobRef]) -> None:
        for folder, group in _by_folder(refs).items():
            if folder.parent.is_dir():
                _write_cancels(folder, group)
        give_up = time.monotonic() + self.grace_period + 10
        while time.monotonic() < give_up:
            statuses = self.poll(refs)
            if all(status.state.ended or status.state == JobState.UNKNOWN for status in statuses.values()):
                return
            for folder, group in _by_folder(refs).items():
                # A supervisor that has not written this down yet will look into the folder when it starts.
                history = read(folder / "journal.jsonl")
                process = history.supervisor
                if process and process.identity and processes.identity(process.pid) == process.identity:
                    os.kill(process.pid, signal.SIGTERM if _is_all(history, group) else signal.SIGUSR1)
            time.sleep(0.02)

    def check(self) -> list[Check]:
        from nemorun.workspace import home

        writable = os.access(home(), os.W_OK)
        gpus = inventory(os.environ)
        return [
            Check("home", writable, f"{home()} {'can' if writable else 'cannot'} be written"),
            Check("python", True, f"tasks run with {sys.executable}"),
            Check("GPUs", True, f"{len(gpus)} to use: {', '.join(gpus)}" if gpus else "none on this machine"),
        ]


def _check_environment(where: str, env: Mapping[str, str]) -> None:
    for name, value in env.items():
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            raise ConfigError(f"{where}: {name!r} cannot be the name of an environment variable")
        if not isinstance(value, str) or "\0" in value:
            raise ConfigError(f"{where}: the value of {name} must be text without NUL characters")


def _folder(run_dir: str) -> Path:
    """The supervisor's folder: `<experiment>/local` for the run folder `<experiment>/tasks/<name>`."""
    return Path(run_dir).parent.parent / "local"


def _by_folder(refs: Sequence[JobRef]) -> dict[Path, list[JobRef]]:
    groups: dict[Path, list[JobRef]] = {}
    for ref in refs:
        groups.setdefault(_folder(ref.run_dir), []).append(ref)
    return groups


def _write_cancels(folder: Path, refs: list[JobRef]) -> None:
    """Leave word for the supervisor: it may not have started yet, and not all tasks may be meant."""
    try:
        (folder / "cancel").mkdir(parents=True, exist_ok=True, mode=0o700)
        for ref in refs:
            (folder / "cancel" / ref.name).touch(mode=0o600)
    except OSError as error:  # a full disk must not keep a run alive
        if not _is_all(read(folder / "journal.jsonl"), refs):
            raise StoreError(f"one task cannot be cancelled ({error}); cancel all, or make room") from None


def _is_all(history: History, refs: list[JobRef]) -> bool:
    """Are these all the supervisor's tasks that have not ended?"""
    return history.supervisor is not None and {*history.unfinished} <= {ref.name for ref in refs}


def _lock_for_submission(folder: Path, text: bytes) -> int | None:
    """The lock, if this very plan is still to be submitted; None if that has happened."""
    plan = folder / "plan.json"
    give_up = time.monotonic() + 10
    while True:
        lock = try_lock(folder)
        history = read(folder / "journal.jsonl")
        if lock is not None and history.supervisor is None and not history.abandoned:
            return lock
        if lock is not None:
            os.close(lock)
        if history.abandoned:
            raise SubmitError(f"{folder.parent} was found without a launcher and closed; submit it anew")
        if plan.exists():
            if (written := plan.read_bytes()) == text:
                return None
            if written:
                raise SubmitError(f"{folder} holds another submission already")
        if time.monotonic() > give_up:
            raise SubmitError(f"{folder} is in use by another process: its lock was not free for 10 s")
        time.sleep(0.005)


def _start_supervisor(folder: Path, text: bytes, lock: int, secrets: Mapping[str, str]) -> None:
    from nemorun.workspace import home

    temporary = folder / "plan.json.new"
    temporary.touch(mode=0o600)
    temporary.write_bytes(text)
    temporary.replace(folder / "plan.json")
    (folder / "supervisor.log").touch(mode=0o600)
    with (folder / "supervisor.log").open("ab") as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "nemorun.executors.local.supervisor", str(folder), str(lock)],
            cwd=folder,  # where no module of the user's shadows one of ours
            env={**without_others(os.environ), "NEMORUN_HOME": str(home()), **secrets},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(lock,),
            start_new_session=True,
        )
    _started.append(supervisor)


def _statuses(folder: Path, refs: list[JobRef]) -> dict[str, JobStatus]:
    """What the journal says of these jobs; it is brought to its end first if the supervisor died."""
    history = read(folder / "journal.jsonl")
    supervised = True
    if history.supervisor is None or not {ref.name for ref in refs}.isdisjoint(history.unfinished):
        if not folder.parent.is_dir():
            gone = JobStatus(JobState.UNKNOWN, message=f"its folder {folder.parent} is gone")
            return {ref.token: gone for ref in refs}
        folder.mkdir(exist_ok=True, mode=0o700)
        supervised = not reconcile(folder)
        history = read(folder / "journal.jsonl")
    return {ref.token: _status(history, ref.name, supervised, folder) for ref in refs}


def _status(history: History, name: str, supervised: bool, folder: Path) -> JobStatus:
    if history.abandoned:
        message = "its launcher, or its supervisor, ended before anything was started"
        log = folder / "supervisor.log"
        if log.exists() and log.stat().st_size:
            message += f"; {log} says why"
        return JobStatus(JobState.FAILED, Reason.NOT_SUBMITTED, message)
    if history.supervisor is None:
        return JobStatus(JobState.PENDING, message="it is being submitted")
    if name not in history.tasks:
        return JobStatus(JobState.UNKNOWN, message="the journal of its experiment does not know it")
    status = history.tasks[name].status
    if not supervised and not status.state.ended:
        message = f"its supervisor is gone; ask on {history.host}, where it ran"
        return replace(status, state=JobState.UNKNOWN, message=message)
    return status


def _log_files(run_dir: Path) -> Iterator[tuple[int, int, Path]]:
    """(attempt, rank, path), in order."""
    found = []
    for path in run_dir.glob("logs/attempt-*/rank-*.log"):
        attempt, rank = path.parent.name.removeprefix("attempt-"), path.stem.removeprefix("rank-")
        if attempt.isdigit() and rank.isdigit():
            found.append((int(attempt), int(rank), path))
    yield from sorted(found)


def _chunks(path: Path, attempt: int, rank: int, offset: int, done: bool) -> Iterator[LogChunk]:
    """The file from `offset` on in whole lines; the last one as it stands if the writer is done."""
    with path.open("rb") as file:
        file.seek(offset)
        while block := file.read(_CHUNK):
            full = len(block) == _CHUNK
            if full or not done:
                whole = max(block.rfind(b"\n"), block.rfind(b"\r")) + 1
                block = block[: whole or (_CHUNK if full else 0)]
            if not block:
                return
            offset += len(block)
            file.seek(offset)
            yield LogChunk(rank, attempt, block.decode(errors="replace"), offset)
