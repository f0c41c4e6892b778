"""A prepared experiment: its submissions as text, its record on disk, and the launch.

The record is complete before anything is submitted, so that a launcher that dies loses nothing.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any

import yaml

from nemorun.config import dumps
from nemorun.errors import ConfigError, NemorunError, StoreError, SubmitUnclear
from nemorun.executors.configured import as_config
from nemorun.experiment import store
from nemorun.experiment.prepare import PreparedTask
from nemorun.experiment.provenance import facts, git_facts
from nemorun.experiment.record import CREATED_FORMAT, EXPERIMENT_FILE, Record, spec_text, submission_lock
from nemorun.job import JobSpec, JobState, JobStatus, Reason
from nemorun.packaging import Frozen
from nemorun.packaging.git import diff

if TYPE_CHECKING:
    from nemorun.executors.base import Executor, Rendered


@dataclass
class Submission:
    """What one call of an executor's `submit` sends."""

    executor: Executor
    tasks: list[PreparedTask]
    rendered: Rendered
    secrets: dict[str, str]


@dataclass
class Plan:
    id: str
    name: str
    folder: Path
    """Where the record will be."""
    tasks: list[PreparedTask]
    archives: Sequence[Frozen] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    """What else the record says, as plain data."""
    config: str | None = None
    """The user's, as YAML, for the record."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Name -> text of further files of the record."""
    created_at: float = field(default_factory=time.time)
    """Seconds since the epoch; the index and the record say the same."""

    def __post_init__(self) -> None:
        """Group the tasks by where they go and render each group. Raises ConfigError."""
        groups: dict[Hashable, list[PreparedTask]] = {}
        for task in self.tasks:
            groups.setdefault(task.executor.place(), []).append(task)
        self.submissions = []
        for number, group in enumerate(groups.values()):
            _check_dependencies(group, self.tasks)
            # run folders tell an executor which submission is meant, so each has a folder of its own
            folder = self.folder / f"group-{number + 1}" if number else self.folder
            for task in group:
                task.spec = _placed(task, self.id, folder)
                task.executor.check_job(task.spec)
            executor = group[0].executor
            own = {task.spec.name: task.executor for task in group}
            rendered = executor.render([task.spec for task in group], own)
            self.submissions.append(Submission(executor, group, rendered, _secrets(group)))

    def warn(self) -> None:
        """Tell the user what is allowed and yet may not be meant."""
        warnings = [warning for archive in self.archives for warning in archive.warnings]
        warnings += [warning for task in self.tasks for warning in task.executor.warnings()]
        for warning in dict.fromkeys(warnings):
            print(f"warning: {warning}", file=sys.stderr)

    def text(self) -> str:
        """Exactly what will be sent."""
        return "\n".join(submission.rendered.text for submission in self.submissions)

    def launch(self) -> Record:
        """Write the record, then submit. If a submission is refused, what went before it is cancelled.

        Raises StoreError where the record cannot be written, and then nothing of it stays; SubmitError.
        """
        self.warn()
        with self._recorded() as entry:
            for number, submission in enumerate(self.submissions):
                try:
                    handles = submission.executor.submit(submission.rendered, submission.secrets)
                except SubmitUnclear as error:  # it may run, so nothing that was sent is called back
                    self._not_submitted(number + 1, str(error))
                    raise
                except NemorunError as error:
                    self._not_submitted(number, str(error))
                    for earlier in self.submissions[:number]:
                        earlier.executor.cancel([Record(entry).ref(task.spec.name) for task in earlier.tasks])
                    raise
                with suppress(StoreError):  # a disk that is full now: jobs are found by their tokens, too
                    store.set_handles(self.id, handles)
                tasks = (replace(task, handle=handles.get(task.name, task.handle)) for task in entry.tasks)
                entry = replace(entry, tasks=tuple(tasks))
        return Record(entry)

    def _not_submitted(self, number: int, message: str) -> None:
        """Write down that the submissions from `number` on were refused, or not tried any more."""
        never = JobStatus(JobState.FAILED, Reason.NOT_SUBMITTED, message)
        refused = [task.spec.name for submission in self.submissions[number:] for task in submission.tasks]
        with suppress(StoreError):  # the refusal is what is to be told
            store.update(self.id, dict.fromkeys(refused, never))

    @contextmanager
    def _recorded(self) -> Iterator[store.Entry]:
        """Make the record and hold its lock; it appears whole and locked: nobody judges it too early."""
        part = self.folder.with_name(f".{self.folder.name}.part")
        tasks = (
            store.TaskEntry(task.spec.name, Path(task.spec.run_dir), task.executor.type)
            for task in self.tasks
        )
        entry = store.Entry(self.id, self.name, self.folder, self.created_at, tuple(tasks))
        with ExitStack() as held:
            try:
                self.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                part.mkdir(mode=0o700)
                self._write(part)
                held.enter_context(submission_lock(part, wait=True))
                part.rename(self.folder)
                store.add(entry)
            except (OSError, NemorunError) as error:
                for folder in (part, self.folder):
                    shutil.rmtree(folder, ignore_errors=True)
                if isinstance(error, NemorunError):
                    raise
                raise StoreError(
                    f"the experiment's record {self.folder} cannot be written ({error.strerror}); "
                    "nothing was submitted"
                ) from None
            yield entry

    def _write(self, part: Path) -> None:
        """The plain files of the record."""
        _write(part / ".gitignore", "*\n")  # it may stand in a repository; it is never code
        _write(part / EXPERIMENT_FILE, self._summary())
        dirty = [one.root for one in self.archives if one.git and one.git.commit and one.git.dirty]
        if dirty:
            _write(part / "git.diff", "".join(diff(root) for root in dirty))
        for name, text in self.files.items():
            _write(part / name, text)
        made = {part}
        texts: dict[int, str] = {}  # tasks share their executor, unless a plugin has changed it
        for task in self.tasks:
            folder = part / Path(task.spec.run_dir).relative_to(self.folder)
            _make(folder, made)
            if (key := id(task.executor)) not in texts:
                texts[key] = dumps(as_config(task.executor))
            _write(folder / "job.json", spec_text(task.spec))
            _write(folder / "executor.yaml", texts[key])
            for name, source in task.scripts.items():
                _write(folder / name, source)
            if task.yaml:
                _write(folder / "task.yaml", task.yaml)
            if task.results:
                (folder / "results").symlink_to(task.results)

    def _summary(self) -> str:
        archives = [
            {
                "root": str(archive.root),
                "archive": str(archive.path),
                "sha256": archive.sha256,
                "files": archive.files,
                "bytes": archive.size,
                "git": git_facts(archive.git),
            }
            for archive in self.archives
        ]
        tasks = [
            {
                "name": task.spec.name,
                "executor": task.executor.type,
                **dataclasses.asdict(task.spec.resources),
                "dependencies": list(task.spec.dependencies),
                "retries": task.spec.retries,
            }
            for task in self.tasks
        ]
        created = datetime.fromtimestamp(self.created_at).astimezone().strftime(CREATED_FORMAT)
        summary = {"id": self.id, "name": self.name, "created": created, "code": archives}
        summary |= {**self.details, **facts(), "tasks": tasks}
        dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
        text: str = yaml.dump(summary, Dumper=dumper, sort_keys=False, allow_unicode=True)
        return text if self.config is None else text + "config: |\n" + indent(self.config, "  ")


def _check_dependencies(group: list[PreparedTask], tasks: list[PreparedTask]) -> None:
    names = {task.spec.name for task in group}
    for task in group:
        for name in task.spec.dependencies:
            if name not in names:
                other = next(one for one in tasks if one.spec.name == name)
                raise ConfigError(
                    f"task '{task.spec.name}' depends on '{name}', but can only wait for tasks of its own "
                    f"place, and theirs differ: {as_config(task.executor)!r} and "
                    f"{as_config(other.executor)!r}; give both the same"
                )


def _placed(task: PreparedTask, experiment: str, folder: Path) -> JobSpec:
    run_dir = folder / "tasks" / task.spec.name
    return replace(
        task.spec,
        token=f"{experiment}.{task.spec.name}",
        run_dir=str(run_dir),
        task=str(run_dir / "task.yaml") if task.yaml else None,
    )


def _secrets(group: list[PreparedTask]) -> dict[str, str]:
    """Names to values, for all of a submission. Raises ConfigError for one that has no value, or two."""
    values: dict[str, str] = {}
    for task in group:
        for name in task.spec.secrets:
            value = task.given.get(name, os.environ.get(name))
            if value is None:
                raise ConfigError(f"the secret '{name}' is not set: export {name}=… before you submit")
            if values.setdefault(name, value) != value:
                raise ConfigError(
                    f"the secret '{name}' has two values; tasks that are submitted together share one"
                )
    return values


def _make(folder: Path, made: set[Path]) -> None:
    """Make a folder and those above it that are not `made` yet; `parents=True` leaves modes to the umask."""
    if folder not in made:
        _make(folder.parent, made)
        folder.mkdir(mode=0o700)
        made.add(folder)


def _write(path: Path, text: str) -> None:
    """Bytes that are no UTF-8 (of a patch) and ends of lines stay as they are."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(text.encode(errors="surrogateescape"))
