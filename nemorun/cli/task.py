"""From the words of one line to an experiment that is ready to run: what to run, where, and how often."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemorun.errors import ConfigError, DiscoveryError, NemorunError, OverrideError

if TYPE_CHECKING:
    from nemorun.executors.base import Executor
    from nemorun.experiment import Experiment
    from nemorun.workspace import Workspace

_EXECUTOR = "executor."


@dataclass(frozen=True)
class Request:
    """One `nemorun run` line, parsed and not yet looked up."""

    recipe: str | None = None
    overrides: tuple[str, ...] = ()
    rest: tuple[str, ...] | None = None
    """What stands after `--`; None where there is no `--`."""
    yaml: Path | None = None
    sweeps: tuple[str, ...] = ()
    executor: str | None = None
    name: str | None = None
    retries: int | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    smoke: bool = False


def assemble(request: Request, confirm: Callable[[int], None]) -> Experiment:
    """The experiment that the request asks for; nothing is recorded or submitted yet.

    `confirm` is called with the number of tasks of a sweep, and raises where that is not wanted.
    """
    from nemorun.config import expand_sweep
    from nemorun.experiment import Experiment
    from nemorun.experiment.ids import to_name
    from nemorun.workspace import find_workspace

    workspace = find_workspace()
    source = _source(request, workspace)
    points = expand_sweep(list(request.sweeps)) if request.sweeps else [[]]
    if len(points) > 1:
        confirm(len(points))
    tasks = []
    for point in points:
        of_task, of_executor = split_executor([*source.overrides, *point])
        task = source.make(of_task)
        if request.smoke:
            _shrink(task)
        tasks.append((task, make_executor(request.executor, of_executor, workspace)))
    plugins = [load_plugin(text, workspace) for text in request.plugins]
    experiment = Experiment(to_name(source.name) if request.name is None else request.name, plugins=plugins)
    for (task, executor), name in zip(tasks, _point_names(points), strict=True):
        experiment.add(
            task,
            name=name if request.sweeps else to_name(source.name),
            executor=executor,
            retries=request.retries,
            env=request.env,
            secrets=request.secrets,
        )
    return experiment


def _shrink(task: Any) -> None:
    from nemorun.config import Partial, smoke

    if not isinstance(task, Partial):
        raise NemorunError("--smoke is for recipes: a script or a command has no sizes to shrink")
    smoke(task)


@dataclass(frozen=True)
class _Source:
    """What to run: `make` takes the task's overrides."""

    name: str
    make: Callable[[Sequence[str]], Any]
    overrides: tuple[str, ...]


def _source(request: Request, workspace: Workspace) -> _Source:
    recipe, overrides = request.recipe, request.overrides
    if recipe is not None and (request.yaml is not None or is_override(recipe)):
        overrides = (recipe, *overrides)
        recipe = None
    if request.yaml is not None:
        if request.rest is not None:
            raise NemorunError("--yaml takes no arguments after `--`; change the task with KEY=VALUE")
        path, text = request.yaml, _text_of(request.yaml)
        return _Source(path.stem, lambda wanted: _from_yaml(path, text, wanted, workspace), overrides)
    if recipe is None:
        if not request.rest:
            raise NemorunError(
                "nothing to run: name a recipe (`nemorun recipes` lists them), a script, or `-- COMMAND`"
            )
        return _command(request.rest, overrides)
    path = Path(recipe)
    if path.suffix == ".sh" or (path.suffix == ".py" and (request.rest is not None or _is_script(path))):
        return _script(path, request.rest or (), overrides)
    if request.rest is not None:
        raise NemorunError(
            f"'{recipe}' is a recipe and takes KEY=VALUE, not arguments after `--`; "
            "those are for a script (script.py -- ARGS) or stand for a command of their own (-- COMMAND)"
        )
    from nemorun.config import resolve

    return _Source(recipe_name(recipe), lambda wanted: resolve(recipe, wanted, workspace.root), overrides)


def is_override(word: str) -> bool:
    from nemorun.config import split_override

    try:
        split_override(word)
    except OverrideError:
        return False
    return True


def _command(argv: Sequence[str], overrides: tuple[str, ...]) -> _Source:
    from nemorun.experiment import Command

    name = Path(argv[0]).name

    def make(overrides: Sequence[str]) -> Any:
        _refuse(overrides, f"the command '{name}'")
        return Command(argv)

    return _Source(name, make, overrides)


def _script(path: Path, arguments: Sequence[str], overrides: tuple[str, ...]) -> _Source:
    from nemorun.experiment import Script

    if not path.is_file():
        raise DiscoveryError(f"there is no script '{path}' in {Path.cwd()}")

    def make(overrides: Sequence[str]) -> Any:
        _refuse(overrides, f"the script '{path}'")
        return Script(str(path), tuple(arguments))

    return _Source(path.stem, make, overrides)


def _refuse(overrides: Sequence[str], what: str) -> None:
    if overrides:
        raise OverrideError(
            f"'{overrides[0]}' cannot be applied: {what} has no configuration; its arguments follow `--`, "
            "and executor.FIELD=VALUE sets a field of the executor"
        )


def _is_script(path: Path) -> bool:
    """Whether a Python file holds no factory, and so is a plain script. It is read, never run."""
    if not path.is_file():
        return False
    import ast

    try:
        module = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"'{path}' is not valid Python: {error}") from error
    return not any(
        "factory" in (ast.unparse(decorator).partition("(")[0].split("."))
        for node in module.body
        if isinstance(node, ast.FunctionDef)
        for decorator in node.decorator_list
    )


def _text_of(path: Path) -> str:
    """What a file holds, `-` being the standard input."""
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--yaml {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--yaml {path} cannot be read: {error}") from error


def _from_yaml(path: Path, text: str, overrides: Sequence[str], workspace: Workspace) -> Any:
    from nemorun.config import Partial, apply, loads

    try:
        task = loads(text, base=path.absolute().parent, code_root=workspace.root)
    except ConfigError as error:
        raise ConfigError(f"--yaml {path}: {error}") from error
    if not isinstance(task, Partial):
        raise ConfigError(f"--yaml {path} holds {task!r}; a task is what `nemorun show RECIPE --yaml` prints")
    apply(task, overrides)
    return task


def split_executor(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the task's overrides, the executor's without their `executor.`)."""
    if chosen := next((text for text in overrides if text.startswith("executor=")), None):
        name = chosen.partition("=")[2] or "NAME"
        raise OverrideError(
            f"'{chosen}' chooses no executor: write -e {name}; executor.FIELD=VALUE sets a field of it"
        )
    task = [text for text in overrides if not text.startswith(_EXECUTOR)]
    return task, [text.removeprefix(_EXECUTOR) for text in overrides if text.startswith(_EXECUTOR)]


def make_executor(name: str | None, overrides: Sequence[str], workspace: Workspace) -> Executor:
    """The executor of that name (None: the default one) with the overrides applied and checked."""
    from nemorun.config import apply, validate
    from nemorun.executors.configured import executor_config

    config = executor_config(name, workspace)
    chosen = name or workspace.settings.default_executor or "local"
    try:
        apply(config, overrides)
        validate(config)
        executor = config.build()
        executor.validate()
    except ConfigError as error:
        raise type(error)(f"executor '{chosen}': {error}") from error
    return executor


def load_plugin(text: str, workspace: Workspace) -> Any:
    """The plugin that a class or a factory makes, `FILE.py:NAME`, `package.NAME` or either as a call."""
    from nemorun.config import Buildable, Partial, call_factory, find, validate
    from nemorun.config.overrides.grammar import split_call

    name, arguments = split_call(text) or (text, [])
    try:
        plugin = call_factory(find(name, workspace.root), *arguments, workspace_root=workspace.root)
    except (ConfigError, DiscoveryError) as error:
        raise type(error)(f"--plugin {text}: {error}") from error
    if isinstance(plugin, Buildable):
        validate(plugin)
        plugin = plugin() if isinstance(plugin, Partial) else plugin.build()
    if not callable(getattr(plugin, "setup", None)):
        raise DiscoveryError(
            f"--plugin {text} gives a {type(plugin).__name__}, which has no setup(task, executor)"
        )
    return plugin


def recipe_name(text: str) -> str:
    """`llama3_8b(seq_length=4096)`, `file.py:llama3_8b` and `pkg.llama3_8b` are all called `llama3_8b`."""
    target = text.partition("(")[0]
    if target.endswith(".py"):
        return Path(target).stem
    return re.split(r"[.:/]", target)[-1]


def _point_names(points: Sequence[Sequence[str]]) -> list[str]:
    """A name for each point of a grid that says its values, such as `lr-1e-3_layers-2`, each one once."""
    from nemorun.experiment.ids import to_name

    keys = [text.partition("=")[0] for text in points[0]]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise OverrideError(f"--sweep {twice}=… is given twice; put all its values into one")
    last = [key.rpartition(".")[2] for key in keys]
    short = [part if last.count(part) == 1 else key for part, key in zip(last, keys, strict=True)]
    names: list[str] = []
    for point in points:
        values = [text.partition("=")[2].strip("'\"") for text in point]
        stem = name = to_name("_".join(f"{key}-{value}" for key, value in zip(short, values, strict=True)))
        count = 1
        while name in names:
            count += 1
            name = f"{stem[:95]}-{count}"
        names.append(name)
    return names
