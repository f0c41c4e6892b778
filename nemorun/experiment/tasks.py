"""What an experiment is made of: functions, scripts and commands, and the order in which they may run."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemorun.errors import ConfigError, did_you_mean
from nemorun.experiment.ids import to_name

if TYPE_CHECKING:
    from nemorun.config import Partial
    from nemorun.executors.base import Executor
    from nemorun.experiment.plugins import Plugin


@dataclass
class Script:
    """A script file with its arguments. Python files run under this interpreter, `.sh` files under bash."""

    path: str | Path
    args: Sequence[str] = ()

    def command(self) -> tuple[str, ...]:
        path = Path(self.path)
        if not path.is_file():
            raise ConfigError(f"there is no script '{path}' (seen from {Path.cwd()})")
        runner = {".py": [sys.executable], ".sh": ["bash"]}.get(path.suffix, [])
        name = str(path) if runner or path.parent != Path() else f"./{path}"
        return (*runner, name, *map(str, self.args))


@dataclass
class Command:
    """A command line, word by word; no shell reads it. Its program need only be where the task runs."""

    argv: Sequence[str]

    def command(self) -> tuple[str, ...]:
        if isinstance(self.argv, str) or not self.argv:
            raise ConfigError(
                f"a command is a list of words, such as ['ls', '-l']; this one is {self.argv!r}"
            )
        return tuple(map(str, self.argv))


@dataclass(frozen=True)
class TaskRef:
    """A task of an experiment, to be named as a dependency of others."""

    name: str


@dataclass
class Task:
    """A task as it was added, before anything is checked."""

    name: str
    work: Partial[Any] | Script | Command
    executor: Executor
    dependencies: tuple[str, ...] = ()
    retries: int | None = None
    """None: the executor's."""
    env: dict[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    plugins: tuple[Plugin, ...] = ()


def as_work(task: Partial[Any] | Script | Command | Callable[..., Any]) -> Partial[Any] | Script | Command:
    """The experiment's own copy of a task; a plain callable becomes a Partial. Raises ConfigError."""
    from nemorun.config import Partial

    if isinstance(task, Partial | Script | Command):
        return copy.deepcopy(task)
    if callable(task):
        return Partial(task)
    raise ConfigError(
        f"a task is a run.Partial, a function, a run.Script or a run.Command; this is {task!r}"
        + (
            "; write run.Partial(...) for something that is called in the job"
            if hasattr(task, "build")
            else ""
        )
    )


def default_name(work: Partial[Any] | Script | Command) -> str:
    """What a task is called if nobody says: its function's, script's or program's name."""
    if isinstance(work, Script):
        return to_name(Path(work.path).stem)
    if isinstance(work, Command):
        return to_name(Path(work.command()[0]).name)
    return to_name(getattr(work.__fn_or_cls__, "__name__", "task"))


def check_graph(tasks: Sequence[Task]) -> None:
    """Raises ConfigError for an unknown dependency or tasks that wait for each other."""
    names = [task.name for task in tasks]
    for task in tasks:
        for dependency in task.dependencies:
            if dependency not in names:
                raise ConfigError(
                    f"task '{task.name}' depends on '{dependency}', which is not in this experiment; "
                    f"it has {_listed(names)}{did_you_mean(dependency, names)}"
                )
    try:
        TopologicalSorter({task.name: task.dependencies for task in tasks}).prepare()
    except CycleError as error:
        raise ConfigError(
            f"tasks wait for each other in a circle: {' → '.join(error.args[1][::-1])}"
        ) from None


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
