"""A recorded experiment: what any later process needs to show it, to follow it, to cancel it."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemorun.errors import DiscoveryError, NemorunError, StoreError, TaskFailed, did_you_mean
from nemorun.experiment import store
from nemorun.job import JobRef, JobSpec, JobState, JobStatus, Resources

if TYPE_CHECKING:
    from nemorun.executors.base import Executor

EXPERIMENT_FILE = "experiment.yaml"
#: Of its `created`: fine enough to tell the order of two that were made at once.
CREATED_FORMAT = "%Y-%m-%d %H:%M:%S.%f %z"


@dataclass(frozen=True)
class TaskResult:
    """How a task stands, and what its function returned, where that is plain data."""

    status: JobStatus
    value: Any = None

    @property
    def state(self) -> JobState:
        return self.status.state


@dataclass(frozen=True)
class Result:
    """How an experiment stands."""

    id: str
    state: JobState
    tasks: Mapping[str, TaskResult]

    @property
    def value(self) -> Any:
        """What the only task's function returned; None where there are several."""
        return next(iter(self.tasks.values())).value if len(self.tasks) == 1 else None


class Pace:
    """Sleeps of a loop that waits for something to happen: short after it did, long when nothing does."""

    def __init__(self, executors: Iterable[Executor]) -> None:
        paces = [executor.pace for executor in executors]
        self._shortest = max(shortest for shortest, _ in paces)
        self._longest = max(longest for _, longest in paces)
        self._since = time.monotonic()

    def pause(self, happened: bool) -> None:
        if happened:
            self._since = time.monotonic()
        idle = time.monotonic() - self._since
        time.sleep(min(self._longest, max(self._shortest, idle / 20)))


class Record:
    """One experiment in the store. Its statuses are as last read: `refresh` asks the executors."""

    def __init__(self, entry: store.Entry) -> None:
        self.id, self.name = entry.id, entry.name
        self.folder, self.created_at = entry.folder, entry.created_at
        self._load(entry)

    @classmethod
    def find(cls, text: str) -> Record:
        """The experiment of that ID (its beginning will do), name (its latest) or `-N` (the N-th last)."""
        return cls(store.get(store.resolve(text)))

    def _load(self, entry: store.Entry) -> None:
        self.statuses = {task.name: task.status for task in entry.tasks}
        self.run_dirs = {task.name: task.run_dir for task in entry.tasks}
        self.kinds = {task.name: task.executor for task in entry.tasks}
        self._handles = {task.name: task.handle for task in entry.tasks}

    @property
    def state(self) -> JobState:
        return store.overall(status.state for status in self.statuses.values())

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What `experiment.yaml` says."""
        import yaml

        facts: dict[str, Any] = yaml.safe_load(self.read(self.folder / EXPERIMENT_FILE))
        return facts

    @cached_property
    def specs(self) -> dict[str, JobSpec]:
        """The jobs as they were submitted."""
        return {
            name: _spec(json.loads(self.read(folder / "job.json"))) for name, folder in self.run_dirs.items()
        }

    def read(self, path: Path) -> str:
        """The text of a file of the record. Raises DiscoveryError where it was deleted."""
        try:
            return path.read_text(encoding="utf-8")
        except OSError as error:
            raise DiscoveryError(f"the record of experiment {self.id} is incomplete: {error}") from None

    def executor(self, task: str) -> Executor:
        """The executor of that task, built from the record; equal ones are one object."""
        return self._executors[task]

    @cached_property
    def _executors(self) -> dict[str, Executor]:
        from nemorun.config import loads

        texts = {name: self.read(folder / "executor.yaml") for name, folder in self.run_dirs.items()}
        built = {text: loads(text).build() for text in set(texts.values())}
        return {name: built[text] for name, text in texts.items()}

    def ref(self, task: str) -> JobRef:
        return JobRef(task, f"{self.id}.{task}", str(self.run_dirs[task]), self._handles[task])

    def check_task(self, name: str) -> str:
        """The name, if there is such a task. Raises DiscoveryError."""
        if name not in self.statuses:
            known = ", ".join(self.statuses) + did_you_mean(name, self.statuses)
            raise DiscoveryError(f"experiment {self.id} has no task '{name}'; it has: {known}")
        return name

    def refresh(self) -> bool:
        """Ask the executors about tasks that have not ended, write what they say. True if anything changed.

        An executor that cannot be asked leaves its tasks UNKNOWN.
        """
        return bool(refresh([self]))

    def _learn(self, found: Mapping[str, JobStatus]) -> bool:
        """Write down what has changed; True if anything has."""
        changed = {name: status for name, status in found.items() if status != self.statuses[name]}
        if changed:
            try:
                self._load(store.update(self.id, changed))
            except StoreError:  # a full disk, say: who asks next writes it down
                self.statuses |= changed
        return bool(changed)

    def _unknown(self, why: str) -> dict[str, JobStatus]:
        """Its tasks that have not ended, as they stand where nobody can be asked."""
        return {
            name: replace(self.statuses[name], state=JobState.UNKNOWN, message=why)
            for name in self.unfinished()
        }

    def unfinished(self) -> list[str]:
        """Names of the tasks that have not ended, as last read."""
        return [name for name, status in self.statuses.items() if not status.state.ended]

    def by_place(self, names: Iterable[str]) -> list[tuple[Executor, list[str]]]:
        """These tasks in groups that are asked for in one go, each with an executor to ask."""
        groups: dict[Hashable, tuple[Executor, list[str]]] = {}
        for name in names:
            executor = self.executor(name)
            groups.setdefault(executor.place(), (executor, []))[1].append(name)
        return list(groups.values())

    def pace(self) -> Pace:
        return Pace(self._executors.values())

    def wait(self) -> None:
        """Return when every task has ended."""
        pace = self.pace()
        while not self.state.ended:
            pace.pause(self.refresh())

    def cancel(self, task: str | None = None) -> None:
        """Cancel one task, or all that have not ended. A task that has ended stays as it is."""
        only = self.check_task(task) if task else None
        with submission_lock(self.folder, wait=True):  # not in the middle of its submission
            self._load(store.get(self.id))
        for executor, names in self.by_place(name for name in self.unfinished() if only in (None, name)):
            executor.cancel([self.ref(name) for name in names])
        self.refresh()

    def result(self) -> Result:
        """How it stands, as last read, with what the tasks returned."""
        tasks = {
            name: TaskResult(status, self._value(name, status)) for name, status in self.statuses.items()
        }
        return Result(self.id, self.state, tasks)

    def _value(self, task: str, status: JobStatus) -> Any:
        file = self.run_dirs[task] / "result.json"
        if status.state is not JobState.SUCCEEDED or not file.exists():
            return None
        return json.loads(file.read_text())

    def raise_if_failed(self, excerpt: bool = True) -> None:
        """Raise TaskFailed if a task has not succeeded; with its `excerpt`, the failed rank's last words."""
        failed = {name: s for name, s in self.statuses.items() if s.state is not JobState.SUCCEEDED}
        if not failed:
            return
        # what failed by itself says more than what failed with it
        first = min(failed, key=lambda name: (failed[name].started_at is None, failed[name].ended_at or 0))
        text = f"task '{first}' of {self.name} ({self.id}) {describe(failed[first])}"
        if len(failed) > 1:
            text += f"; {len(failed) - 1} more did not succeed"
        text += f"; `nemorun logs {self.id}` shows its output"
        words = self.executor(first).excerpt(self.ref(first)).rstrip() if excerpt else ""
        raise TaskFailed(f"{text}\n{words}" if words else text)


@contextmanager
def submission_lock(folder: Path, wait: bool) -> Iterator[bool]:
    """Held by the process that submits: until it is done, or dead, nobody else asks what became of it.

    Yields whether we have it, which without `wait` may be not.
    """
    try:
        fd = os.open(folder / "submission.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError as error:
        raise DiscoveryError(f"the experiment's record is gone: {error}") from None
    except OSError as error:
        raise StoreError(f"the experiment's record cannot be used: {error}") from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


def describe(status: JobStatus) -> str:
    """A status in plain words: `failed: non-zero exit code: rank 0 ended with 3`."""
    parts = [status.state.value.lower(), status.reason.value, status.message]
    # what was cancelled has that for its reason, too: once is enough
    return ": ".join(part for part in dict.fromkeys(parts) if part)


def spec_text(spec: JobSpec) -> str:
    # asdict would copy every value, which takes as long as the rest
    return json.dumps({**vars(spec), "resources": vars(spec.resources)}, indent=2) + "\n"


def _spec(fields: dict[str, Any]) -> JobSpec:
    fields["resources"] = Resources(**fields["resources"])
    for name in ("secrets", "dependencies", "command"):
        fields[name] = None if fields[name] is None else tuple(fields[name])
    return JobSpec(**fields)


def records(limit: int | None = None, ask: bool = True) -> list[Record]:
    """The last `limit` experiments, newest first, as they stand now, or (not asked) when last looked at."""
    found = [Record(entry) for entry in store.entries(limit)]
    if ask:
        refresh([record for record in found if not record.state.ended])
    return found


def refresh(records: Sequence[Record]) -> list[Record]:
    """Ask about these experiments, once for each place that they run at; returns which have changed."""
    found: dict[str, dict[str, JobStatus]] = {record.id: {} for record in records}
    places: dict[Hashable, tuple[Executor, list[tuple[Record, str]]]] = {}
    with ExitStack() as locks:
        for record in records:
            try:
                # while another process is just submitting it, nobody can tell
                if locks.enter_context(submission_lock(record.folder, wait=False)):
                    for executor, names in record.by_place(record.unfinished()):
                        tasks = places.setdefault(executor.place(), (executor, []))[1]
                        tasks += ((record, name) for name in names)
            except NemorunError as error:
                found[record.id] = record._unknown(str(error))
        for executor, asked in places.values():
            try:
                polled = executor.poll([record.ref(name) for record, name in asked])
            except NemorunError as error:
                for record, name in asked:
                    found[record.id][name] = record._unknown(str(error))[name]
            else:
                for record, name in asked:
                    found[record.id][name] = polled[record.ref(name).token]
    return [record for record in records if record._learn(found[record.id])]
