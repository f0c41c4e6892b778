"""Recorded experiments, once more: run one again with its own code, or compare two."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from nemorun.config import Partial, apply, dumps, loads, resources_of, validate
from nemorun.config.buildable import UnknownArgument, check_name
from nemorun.config.views import Difference
from nemorun.errors import ConfigError, DiscoveryError, OverrideError
from nemorun.experiment.experiment import Experiment
from nemorun.experiment.prepare import PreparedTask
from nemorun.experiment.record import Record
from nemorun.experiment.tasks import TaskRef
from nemorun.packaging import unpack

_EXECUTOR = "executor."


def rerun(text: str, overrides: Sequence[str] = (), *, resume: bool = False) -> Experiment:
    """A new experiment, ready to `run()`, from a record: its configuration, its code, its environment.

    Args:
        text: ID, name or `-N`
        overrides: applied to every task that takes them; `executor.field=value` to every executor
        resume: the tasks go on in the old results folders, from their last checkpoint
    """
    return _Rerun(Record.find(text), tuple(overrides), resume)


class _Rerun(Experiment):
    """An experiment whose tasks come out of a record."""

    def __init__(self, record: Record, overrides: tuple[str, ...], resume: bool) -> None:
        super().__init__(record.name, log_dir=record.folder.parent)
        self._old = record
        self._task_overrides = [text for text in overrides if not text.startswith(_EXECUTOR)]
        self._executor_overrides = [
            text.removeprefix(_EXECUTOR) for text in overrides if text.startswith(_EXECUTOR)
        ]
        self._resume = resume

    def add(self, *args: Any, **options: Any) -> TaskRef:
        raise ConfigError(f"nothing can be added to a rerun of {self._old.id}; make a new Experiment")

    def _contents(self, sequential: bool, keep_code: bool) -> dict[str, Any]:
        old, facts = self._old, self._old.facts
        if sequential:
            raise ConfigError(
                "a rerun keeps the order that was recorded; 'sequential' is for new experiments"
            )
        old.refresh()
        if self._resume and not old.state.ended:
            raise ConfigError(
                f"{old.id} has not ended, so nothing can go on from its results; cancel it first"
            )
        kept = ("seed", "git_commit", "tensorboard", "wandb", "code")
        details = {"rerun_of": old.id, "resumed": self._resume, "overrides": self._all_overrides()}
        patch = old.folder / "git.diff"
        self._unused = set(self._task_overrides)
        tasks = [self._again(name) for name in old.statuses]
        if self._unused:
            raise OverrideError(f"'{min(self._unused)}' does not apply: no task of {old.id} takes it")
        return {
            "tasks": tasks,
            "details": {**{key: facts.get(key) for key in kept}, **details},
            "config": facts.get("config"),
            "files": {"git.diff": os.fsdecode(patch.read_bytes())} if patch.exists() else {},
        }

    def _all_overrides(self) -> list[str]:
        return self._task_overrides + [_EXECUTOR + text for text in self._executor_overrides]

    def _again(self, name: str) -> PreparedTask:
        old, run_dir = self._old, self._old.run_dirs[name]
        spec = old.specs[name]
        if spec.code and not Path(spec.code).exists():
            raise DiscoveryError(f"the code that {old.id} ran is gone: there is no {spec.code}")
        task = PreparedTask(spec, old.executor(name))
        if spec.task:
            task.yaml = old.read(Path(spec.task))
            task.scripts = {file.name: file.read_text() for file in run_dir.glob("*.py")}
        if self._all_overrides():
            self._change(task, run_dir)
        if self._resume:
            task.results = (run_dir / "results").resolve()
            task.results.mkdir(mode=0o700, exist_ok=True)
        return task

    def _change(self, task: PreparedTask, run_dir: Path) -> None:
        """Apply the overrides, and what follows from them for the job."""
        if self._executor_overrides:
            config = loads(self._old.read(run_dir / "executor.yaml"))
            apply(config, self._executor_overrides)
            validate(config)
            task.executor = config.build()
            task.executor.validate()
        partial: Partial[Any] | None = None
        if task.yaml is not None:
            code = unpack(Path(task.spec.code)) if task.spec.code else None
            if code and str(code) not in sys.path:
                sys.path.insert(0, str(code))
            changed: Partial[Any] = loads(task.yaml, base=run_dir, code_root=code)
            wanted = [text for text in self._task_overrides if self._is_for(changed, text)]
            self._unused -= set(wanted)
            apply(changed, wanted)
            validate(changed)
            partial = changed
            # a notebook's source was found in the old run's folder, and goes into the new one
            task.yaml = dumps(changed, code_root=code).replace(f"script:{run_dir}/", "script:")
        task.spec = replace(
            task.spec,
            resources=task.executor.resources(resources_of(partial) if partial else None),
            env={**task.spec.env, **task.executor.env_vars},
            retries=task.executor.retries if "retries" in self._fields() else task.spec.retries,
        )

    def _is_for(self, task: Partial[Any], override: str) -> bool:
        """Does the task take it? The only function of a record gets all, and says what is wrong with one."""
        name = re.match(r"\w+", override)
        if name is None or sum(spec.task is not None for spec in self._old.specs.values()) == 1:
            return True
        try:
            check_name(task, name[0])
        except UnknownArgument:
            return False
        return True

    def _fields(self) -> set[str]:
        return {text.partition("=")[0].rstrip("+-*/|&") for text in self._executor_overrides}


def diff(left: str, right: str) -> list[Difference]:
    """What differs between two recorded experiments: origin, code, configurations, executors.

    Tasks of the same name are compared, and so are two only tasks, whatever they are called; a task that one
    side has not is one row. The command lines come last.
    """
    ours, theirs = Record.find(left), Record.find(right)
    rows = _differences("", _facts(ours), _facts(theirs))
    pairs = {name: (name, name) for name in ours.run_dirs}
    if len(ours.run_dirs) == len(theirs.run_dirs) == 1 and ours.run_dirs.keys() != theirs.run_dirs.keys():
        pairs = {"task": (next(iter(ours.run_dirs)), next(iter(theirs.run_dirs)))}
        rows.append(Difference("task", *pairs["task"]))
    else:
        pairs |= {name: (name, name) for name in theirs.run_dirs}
    for path, (our_name, their_name) in pairs.items():
        our_task, their_task = _task(ours, our_name), _task(theirs, their_name)
        if our_task and their_task:
            rows += _differences(f"{path}.", our_task, their_task)
        else:
            rows.append(Difference(path, _summary(our_task), _summary(their_task)))
    return sorted(rows, key=lambda row: row.path == _COMMAND)


_COMMAND = "command"
#: What differs between any two experiments, and where their files are; the code has its checksum.
_OWN_FACTS = ("id", "created", "archive", "tasks")
_OWN_OF_JOB = ("name", "token", "run_dir", "task", "code", "PYTHONPATH")


def _differences(prefix: str, ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[Difference]:
    return [
        Difference(prefix + path, ours.get(path), theirs.get(path))
        for path in dict.fromkeys([*ours, *theirs])
        if ours.get(path) != theirs.get(path)
    ]


def _facts(record: Record) -> dict[str, str]:
    return _flat(record.read(record.folder / "experiment.yaml"), _OWN_FACTS)


def _task(record: Record, name: str) -> dict[str, str]:
    """Dotted path -> text, of everything recorded of a task; empty where there is none of that name."""
    found: dict[str, str] = {}
    if run_dir := record.run_dirs.get(name):
        files = (("job.json", "", _OWN_OF_JOB), ("task.yaml", "", ()), ("executor.yaml", "executor.", ()))
        for file, path, own in files:
            if (run_dir / file).exists():
                flat = _flat(record.read(run_dir / file), own)
                found.update((path + key, value) for key, value in flat.items())
    return found


def _summary(task: Mapping[str, str]) -> str | None:
    return task.get("_target_") or task.get(_COMMAND)


def _flat(text: str, own: Sequence[str]) -> dict[str, str]:
    """Dotted path -> text, of what YAML (or JSON) holds but for `own` keys; nothing is imported for it."""
    found: dict[str, str] = {}
    _flatten("", yaml.compose(text), own, found)
    return found


def _flatten(path: str, node: Any, own: Sequence[str], found: dict[str, str]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value not in own:
                _flatten(f"{path}.{key.value}" if path else str(key.value), value, own, found)
    elif isinstance(node, yaml.SequenceNode) and path == _COMMAND:
        found[path] = shlex.join(str(word.value) for word in node.value)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _flatten(f"{path}[{index}]", value, own, found)
    elif node is not None:
        found[path] = str(node.value)
