"""`Experiment` and `run`: what people write."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar, Token
from dataclasses import fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from nemorun.config import Buildable, Config, LaunchInTask, dumps, launching_allowed, validate
from nemorun.errors import ConfigError
from nemorun.experiment import follow as following
from nemorun.experiment.ids import check_name, new_id
from nemorun.experiment.plan import Plan
from nemorun.experiment.prepare import prepare
from nemorun.experiment.record import Record, Result, TaskResult
from nemorun.experiment.seed import check_seed, current_seed
from nemorun.experiment.tasks import Command, Script, Task, TaskRef, as_work, default_name
from nemorun.job import JobState, JobStatus
from nemorun.workspace import home

if TYPE_CHECKING:
    from nemorun.config import Partial
    from nemorun.executors.base import Executor
    from nemorun.experiment.plugins import Plugin

    AnyTask = Partial[Any] | Script | Command | Callable[..., Any]

#: The experiment whose `with` block we are in.
_current: ContextVar[Experiment | None] = ContextVar("nemorun_experiment", default=None)


class Experiment:
    """Tasks that are recorded, launched and looked after together.

    Args:
        name: letters, digits, `-`, `_` and `.`
        executor: for tasks that are added without one; default: the workspace's default executor
        log_dir: the folder to put the record and the results in; default: nemorun's home
        tensorboard: whether training tasks write TensorBoard files
        wandb: arguments for `wandb.init`, to report there, too
        config: anything that belongs into the record
        git_commit: likewise; `run.get_git_commit()`
        seed: for all tasks; default: what `run.set_seed` was given
        plugins: applied to every task, in order, before its own
    """

    def __init__(
        self,
        name: str,
        *,
        executor: Executor | None = None,
        log_dir: str | Path | None = None,
        tensorboard: bool = True,
        wandb: Mapping[str, Any] | None = None,
        config: object = None,
        git_commit: str | None = None,
        seed: int | None = None,
        plugins: Sequence[Plugin] = (),
    ) -> None:
        self.name = check_name("an experiment", name)
        self._executor = executor
        self._log_dir = Path(log_dir).absolute() if log_dir is not None else None
        self._tensorboard, self._wandb = tensorboard, wandb
        self._config, self._git_commit = config, git_commit
        self._seed = seed
        self._plugins = tuple(plugins)
        self._tasks: list[Task] = []
        self._record: Record | None = None
        self._token: Token[Experiment | None] | None = None
        self._id = new_id()

    @classmethod
    def from_id(cls, text: str) -> Experiment:
        """A recorded experiment, by its ID or a unique beginning of it, or `-N` for the N-th last."""
        return cls._recorded(Record.find(text))

    @classmethod
    def from_name(cls, name: str) -> Experiment:
        """The latest experiment of that name."""
        return cls._recorded(Record.find(name))

    @classmethod
    def _recorded(cls, record: Record) -> Experiment:
        experiment = cls(record.name)
        experiment._id, experiment._record = record.id, record
        return experiment

    @property
    def id(self) -> str:
        return self._id

    @property
    def record(self) -> Record:
        """What the store holds of it. Raises ConfigError before it was run."""
        if self._record is None:
            raise ConfigError(f"experiment '{self.name}' has not been run yet; call run() first")
        return self._record

    def add(
        self,
        task: AnyTask,
        *,
        name: str | None = None,
        executor: Executor | None = None,
        dependencies: Sequence[TaskRef | str] = (),
        retries: int | None = None,
        env: Mapping[str, str] | None = None,
        secrets: Sequence[str] = (),
        plugins: Sequence[Plugin] = (),
    ) -> TaskRef:
        """Add a task; it is checked when the experiment runs. What is returned can be depended on.

        Args:
            name: default: the function's, script's or program's name
            dependencies: tasks that must have succeeded before this one starts
            retries: how often it is started again after a failure; default: the executor's
            env: environment variables; a value whose name looks like a secret's is treated as one
            secrets: names of environment variables whose values are handed over and written nowhere
        """
        self._refuse_second_run()
        work = as_work(task)
        executor = executor or self._executor or _default_executor()
        if not hasattr(executor, "check_job"):
            raise ConfigError(f"executor: {executor!r} is none; give one such as run.LocalExecutor()")
        names = {task.name for task in self._tasks}
        if name in names:
            raise ConfigError(
                f"experiment '{self.name}' has a task '{name}' already; give each a name of its own"
            )
        if name is None:
            stem = default_name(work)
            name = next(
                n for n in (stem, *(f"{stem}-{i}" for i in range(2, len(names) + 3))) if n not in names
            )
        wanted = [dependencies] if isinstance(dependencies, str | TaskRef) else dependencies
        after = tuple(one.name if isinstance(one, TaskRef) else one for one in wanted)
        self._tasks.append(
            Task(name, work, executor, after, retries, dict(env or {}), tuple(secrets), tuple(plugins))
        )
        return TaskRef(name)

    def run(self, sequential: bool = False, detach: bool = False, follow: bool = True) -> Result:
        """Check everything, write the record, launch, and follow until the end.

        Args:
            sequential: each task waits for the one that was added before it
            detach: return as soon as it is submitted
            follow: print the tasks' output; without, only wait

        Raises ConfigError or PackagingError before anything is written, SubmitError if an executor refuses,
        TaskFailed if a task does not succeed, KeyboardInterrupt for Ctrl-C.
        """
        return self._launch(self._plan(sequential, keep_code=True), detach, follow)

    def dry_run(self, sequential: bool = False) -> str:
        """Check everything and return exactly what `run` would submit. Nothing is written."""
        plan = self._plan(sequential, keep_code=False)
        plan.warn()
        return plan.text()

    def plan(self, experiment_id: str, folder: Path) -> Plan:
        """Check everything and freeze the code, for a sitting that is not recorded: its id and folder."""
        return Plan(experiment_id, self.name, folder, **self._contents(sequential=False, keep_code=True))

    def _launch(self, plan: Plan, detach: bool, follow: bool) -> Result:
        shown = False
        with following.cancelling(lambda: self._record):
            with following.signals_held():
                self._record = plan.launch()
            if not detach and follow:
                shown = following.follow_run(self._record)
            elif not detach:
                self._record.wait()
        if not detach:
            self.record.raise_if_failed(excerpt=not shown)
        return self.record.result()

    def _plan(self, sequential: bool, keep_code: bool) -> Plan:
        if not launching_allowed():
            raise LaunchInTask
        self._refuse_second_run()
        folder = (self._log_dir or home() / "experiments") / f"{self.name}-{self._id}"
        return Plan(self._id, self.name, folder, **self._contents(sequential, keep_code))

    def _contents(self, sequential: bool, keep_code: bool) -> dict[str, Any]:
        """What the plan holds: the prepared tasks and what is recorded about them."""
        seed = self._seed if self._seed is not None else current_seed()
        if seed is not None:
            check_seed(seed)
        self._check_wandb()
        wandb = None if self._wandb is None else dict(self._wandb)
        env = {"NEMORUN_TENSORBOARD": "1" if self._tensorboard else "0"}
        if wandb is not None:
            env["NEMORUN_WANDB"] = json.dumps(wandb)
        if seed is not None:
            env["NEMORUN_SEED"] = str(seed)
        details = {
            "seed": seed,
            "git_commit": self._git_commit,
            "tensorboard": self._tensorboard,
            "wandb": wandb,
        }
        tasks = _in_sequence(self._tasks) if sequential else self._tasks
        prepared, archives = prepare(tasks, env=env, plugins=self._plugins, keep_code=keep_code)
        return {
            "tasks": prepared,
            "archives": archives,
            "details": details,
            "config": None if self._config is None else dumps(self._checked_config()),
        }

    def _checked_config(self) -> object:
        """The user's config; what has rules of its own is held to them."""
        config = self._config
        if is_dataclass(config) and not isinstance(config, type):
            config = Config(
                type(config), **{f.name: getattr(config, f.name) for f in fields(config) if f.init}
            )
        if isinstance(config, Buildable):
            validate(config)
        return config

    def _check_wandb(self) -> None:
        if self._wandb is None:
            return
        from importlib.util import find_spec

        if not isinstance(self._wandb, Mapping):
            raise ConfigError(
                f"wandb is {self._wandb!r}; it must be a dict, such as {{'project': 'my-project'}}"
            )
        if find_spec("wandb") is None:
            raise ConfigError("wandb was asked for but is not installed; run `pip install 'nemorun[wandb]'`")

    def _refuse_second_run(self) -> None:
        if self._record is not None:
            raise ConfigError(
                f"experiment '{self.name}' was launched already, as {self._id}; make a new Experiment, "
                f"or run it again with `nemorun rerun {self._id}`"
            )

    def status(self) -> dict[str, JobStatus]:
        """Task name -> how it stands now."""
        self.record.refresh()
        return dict(self.record.statuses)

    def logs(self, task: str | None = None, rank: int | None = None, follow: bool = False) -> None:
        """Print what the tasks (or one task, or one rank) have written; with `follow` until the end."""
        following.print_logs(self.record, task, rank, follow)

    def cancel(self, task: str | None = None) -> None:
        """End the experiment, or one task of it, and return when that is done."""
        self.record.cancel(task)

    def wait(self) -> Result:
        """Return when every task has ended. Raises TaskFailed if one did not succeed."""
        self.record.wait()
        self.record.raise_if_failed()
        return self.record.result()

    def __enter__(self) -> Experiment:
        self._token = _current.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Run it, unless the block did or has failed."""
        if self._token is not None:
            _current.reset(self._token)
        if kind is None and self._record is None:
            self.run()

    def __repr__(self) -> str:
        return f"Experiment({self.name!r}, id={self._id!r})"


def run(
    task: AnyTask,
    *,
    executor: Executor | None = None,
    name: str | None = None,
    dependencies: Sequence[TaskRef | str] = (),
    retries: int | None = None,
    env: Mapping[str, str] | None = None,
    secrets: Sequence[str] = (),
    plugins: Sequence[Plugin] = (),
    detach: bool = False,
    follow: bool = True,
    dry_run: bool = False,
) -> Result:
    """Run one task: the arguments are those of `Experiment.add` and `Experiment.run`.

    Inside `with experiment:` the task is added to that experiment instead, which runs at the block's end; the
    result is PENDING then. With `dry_run` what would be submitted is printed, and the result is PENDING, too.
    """
    if not launching_allowed():
        raise LaunchInTask
    given: dict[str, Any] = {
        "executor": executor,
        "name": name,
        "dependencies": dependencies,
        "retries": retries,
    }
    given |= {"env": env, "secrets": secrets, "plugins": plugins}
    if experiment := _current.get():
        if detach or dry_run or not follow:
            raise ConfigError(
                "detach, follow and dry_run are for the whole experiment: give them to experiment.run()"
            )
        return _pending(experiment, experiment.add(task, **given))
    experiment = Experiment(name or default_name(as_work(task)))
    ref = experiment.add(task, **given)
    if dry_run:
        sys.stdout.write(experiment.dry_run())
        return _pending(experiment, ref)
    return experiment.run(detach=detach, follow=follow)


def _pending(experiment: Experiment, task: TaskRef) -> Result:
    return Result(experiment.id, JobState.PENDING, {task.name: TaskResult(JobStatus(JobState.PENDING))})


def _in_sequence(tasks: Sequence[Task]) -> list[Task]:
    before = {task.name: earlier.name for earlier, task in pairwise(tasks)}
    return [
        replace(
            task,
            dependencies=tuple(dict.fromkeys((*task.dependencies, *filter(None, [before.get(task.name)])))),
        )
        for task in tasks
    ]


def _default_executor() -> Executor:
    from nemorun.executors.configured import executor

    return executor()
