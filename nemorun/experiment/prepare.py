"""From tasks as they were added to jobs that can be rendered: plugins, checks, frozen code, written configs.

Everything that can be refused is refused here, before anything is written or submitted.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nemorun
from nemorun.config import Buildable, Partial, dumps, is_resumable, resources_of, validate
from nemorun.config.scripts import ARGV_VARIABLE, script_path
from nemorun.errors import ConfigError
from nemorun.experiment.ids import check_name
from nemorun.experiment.provenance import looks_secret
from nemorun.experiment.tasks import Script, Task, check_graph
from nemorun.job import JobSpec
from nemorun.packaging import SUFFIX, Frozen, freeze
from nemorun.workspace import Workspace, find_workspace

if TYPE_CHECKING:
    from nemorun.executors.base import Executor
    from nemorun.experiment.plugins import Plugin


@dataclass
class PreparedTask:
    """One task, ready to be written down and rendered."""

    spec: JobSpec
    """Without what depends on the place where it will live: `token`, `run_dir` and `task`."""
    executor: Executor
    yaml: str | None = None
    """Text of the task's YAML, where it is a function."""
    scripts: dict[str, str] = field(default_factory=dict)
    """Sources that have no file of their own (a notebook's), by the file names that the YAML uses."""
    results: Path | None = None
    """An earlier run's results folder, to go on in."""
    given: dict[str, str] = field(default_factory=dict)
    """Values of secrets that are not taken from the environment."""


def prepare(
    tasks: Sequence[Task],
    *,
    env: Mapping[str, str],
    plugins: Sequence[Plugin] = (),
    keep_code: bool = True,
) -> tuple[list[PreparedTask], list[Frozen]]:
    """Prepare all tasks; `env` is what all of them get. A plan says later where each of them will live.

    Without `keep_code` the archives are named but not kept (a dry run). Raises ConfigError, PackagingError.
    """
    if not tasks:
        raise ConfigError("the experiment has no tasks; add one with experiment.add(task)")
    check_graph(tasks)
    prepared = []
    archives: dict[Path, Frozen | None] = {}
    here = find_workspace()
    copies: dict[int, Executor] = {}
    own = [_own(task, plugins, copies) for task in tasks]
    for task in own:
        _check(task)
    for executor in {id(task.executor): task.executor for task in own}.values():
        _check_executor(executor)
    targets = {task.name: _files_of(task.work) for task in own}
    homes = {task.name: _workspace_of(targets[task.name], here) for task in own}
    for workspace in {workspace.root: workspace for workspace in homes.values()}.values():
        inside = [
            file
            for task in own
            for file in targets[task.name]
            if homes[task.name].root == workspace.root and file.is_relative_to(workspace.root)
        ]
        archives[workspace.root] = freeze(workspace, inside, keep=keep_code)
    paths = {root: _search_path(frozen) for root, frozen in archives.items()}
    for task in own:
        root = homes[task.name].root
        shared = {**paths[root], **env, **_script_argv(targets[task.name])}
        prepared.append(_prepare(task, shared, archives[root]))
    return prepared, [frozen for frozen in archives.values() if frozen]


def _own(task: Task, plugins: Sequence[Plugin], copies: dict[int, Executor]) -> Task:
    """A copy that plugins may change; they are applied here.

    Without plugins, tasks of one executor share its copy in `copies`: a sweep has hundreds of them.
    """
    plugins = (*plugins, *task.plugins)
    if plugins or id(task.executor) not in copies:
        executor = copy.deepcopy(task.executor)
        if not plugins:
            copies[id(task.executor)] = executor
    else:
        executor = copies[id(task.executor)]
    task = dataclasses.replace(task, work=copy.deepcopy(task.work), executor=executor)
    for plugin in plugins:
        if not callable(getattr(plugin, "setup", None)):
            raise ConfigError(f"{plugin!r} is no plugin: it has no method setup(task, executor)")
        plugin.setup(task.work, task.executor)
    return task


def _check(task: Task) -> None:
    check_name("a task", task.name)
    if isinstance(task.work, Partial):
        validate(task.work)
    if isinstance(task.retries, bool) or not isinstance(task.retries, int | None) or (task.retries or 0) < 0:
        raise ConfigError(
            f"task '{task.name}': retries is {task.retries!r}; it must be a whole number from 0"
        )


def _check_executor(executor: Executor) -> None:
    executor.validate()
    for name in executor.env_vars:
        if looks_secret(name):
            raise ConfigError(
                f"executor {executor.type}: env_vars holds '{name}', and records hold env_vars: export "
                f"{name} and pass its name as a secret instead (secrets=['{name}'], or --secret {name})"
            )


def _prepare(task: Task, env: Mapping[str, str], frozen: Frozen | None) -> PreparedTask:
    secret = {name: value for name, value in task.env.items() if looks_secret(name) or name in task.secrets}
    plain = {name: value for name, value in task.env.items() if name not in secret}
    yaml, command = None, None
    scripts: dict[str, str] = {}
    if isinstance(task.work, Partial):
        yaml = dumps(task.work, scripts=scripts, code_root=frozen.root if frozen else None)
    else:
        command = task.work.command()
    spec = JobSpec(
        name=task.name,
        token="",
        run_dir="",
        resources=task.executor.resources(
            resources_of(task.work) if isinstance(task.work, Partial) else None
        ),
        command=command,
        env={**env, **task.executor.env_vars, **plain},
        secrets=tuple(sorted({*task.secrets, *secret})),
        code=str(frozen.path) if frozen else None,
        code_root=str(frozen.root) if frozen else None,
        cwd=str(Path.cwd()),
        dependencies=task.dependencies,
        retries=task.executor.retries if task.retries is None else task.retries,
        resumable=isinstance(task.work, Partial) and is_resumable(task.work),
    )
    return PreparedTask(spec, task.executor, yaml, scripts, given=secret)


def _search_path(frozen: Frozen | None) -> dict[str, str]:
    """The user's folders that this process imports from (`src`, a notebook's), as they stand frozen."""
    entries = dict.fromkeys(Path(entry).resolve() for entry in sys.path)
    mine = [entry for entry in entries if entry.is_dir() and not _installed(entry)]
    if frozen:
        unpacked = Path(str(frozen.path).removesuffix(SUFFIX))
        mine = [
            unpacked / entry.relative_to(frozen.root) if entry.is_relative_to(frozen.root) else entry
            for entry in mine
        ]
    inherited = filter(None, [os.environ.get("PYTHONPATH")])
    return {"PYTHONPATH": os.pathsep.join([*map(str, mine), *inherited])} if mine else {}


def _script_argv(files: Sequence[Path]) -> dict[str, str]:
    """The arguments that this very script was started with, for tasks that load it again."""
    script = script_path(sys.modules["__main__"])
    return {ARGV_VARIABLE: json.dumps(sys.argv[1:])} if script in files and sys.argv[1:] else {}


def _workspace_of(files: Sequence[Path], here: Workspace) -> Workspace:
    """Whose code a task is: the current workspace's, if its files are there or it has none, else their own.

    Where there is no workspace at all, the folder of the task's first file stands in for one.
    """
    if here.kind != "folder" and (not files or files[0].is_relative_to(here.root)):
        return here
    return find_workspace(files[0].parent) if files else here


def _files_of(work: Any) -> list[Path]:
    """Files that define what `work` calls, nested configs included; not those of installed packages."""
    if isinstance(work, Script):
        return [Path(work.path).resolve()]
    files: dict[Path, None] = {}
    pending = [work]
    while pending:
        value = pending.pop()
        if isinstance(value, Buildable):
            pending += [*value.__arguments__.values(), value.__fn_or_cls__]
        elif isinstance(value, dict):
            pending += [*value, *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            pending += value
        elif callable(value) and (file := _file_of(value)):
            files[file] = None
    return list(files)


def _file_of(target: Any) -> Path | None:
    module = sys.modules.get(getattr(target, "__module__", None) or "")
    file = getattr(module, "__file__", None)
    if file is None or not Path(file).is_file():
        return None
    path = Path(file).resolve()
    return None if _installed(path) else path


def _installed(path: Path) -> bool:
    """Is it part of Python, of an installed package or of nemorun itself, and not the user's code?"""
    library, programs = Path(os.__file__).resolve().parent, Path(sys.executable).parent.resolve()
    ours = Path(nemorun.__file__).resolve().parent
    return (
        not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
        or any(path.is_relative_to(folder) for folder in (library, programs, ours))
        or path == ours.parent
    )
