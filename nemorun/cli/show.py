"""`nemorun show`: everything about a recipe or about a recorded experiment."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nemorun.cli.completion import complete_override, complete_recipe_or_experiment
from nemorun.cli.experiments import as_data
from nemorun.cli.output import Json, as_json, table
from nemorun.errors import ConfigError, DiscoveryError, NemorunError, OverrideError

if TYPE_CHECKING:
    from nemorun.config import Partial, Row
    from nemorun.experiment import Record


def show(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|ID",
            help="What `nemorun run` takes; or an experiment by its ID, its name, or as -1, -2, …",
            autocompletion=complete_recipe_or_experiment,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="As in `nemorun run`.", autocompletion=complete_override),
    ] = None,
    yaml: Annotated[
        bool, typer.Option("--yaml", help="Print the task as YAML, which `nemorun run --yaml` runs.")
    ] = False,
    json: Json = False,
) -> None:
    """Show a recipe with overrides applied, or a recorded experiment.

    A recipe is looked for first.
    """
    if yaml and json:
        raise NemorunError("--yaml and --json are two ways to print it: choose one")
    if record := _record(target):
        if overrides:
            raise OverrideError(
                f"'{overrides[0]}' cannot be applied: the experiment {record.id} is recorded as it ran; "
                f"`nemorun rerun {record.id} {shlex.join(overrides)}` runs it again with that change"
            )
        _show_record(record, yaml, json)
    else:
        _show_recipe(target, overrides or [], yaml, json)


def _record(target: str) -> Record | None:
    """The experiment of that name, unless a recipe has it. Raises DiscoveryError if nothing is called so."""
    from nemorun.config import find
    from nemorun.experiment import Record
    from nemorun.workspace import find_workspace

    if target.startswith("-"):
        return Record.find(target)
    try:
        find(target.partition("(")[0], find_workspace().root)
    except DiscoveryError as no_recipe:
        try:
            return Record.find(target)
        except DiscoveryError:
            message = f"{no_recipe}. There is no experiment of that ID or name either (`nemorun list`)"
            raise DiscoveryError(message) from no_recipe
    return None


def _show_recipe(target: str, overrides: list[str], yaml: bool, json: bool) -> None:
    from nemorun.cli.task import split_executor
    from nemorun.config import dumps, resolve, tree
    from nemorun.workspace import find_workspace

    wanted, of_executor = split_executor(overrides)
    if of_executor:
        raise OverrideError(
            f"'executor.{of_executor[0]}' is no part of a recipe; "
            "`nemorun run … --dry-run` shows what an executor makes of it"
        )
    root = find_workspace().root
    task = resolve(target, wanted, root)
    if yaml:
        print(dumps(task, code_root=root), end="")
    elif json:
        as_json([_row_data(row) for row in tree(task)])
    else:
        _print_tree(task, tree(task))


def _print_tree(task: Partial[Any], rows: list[Row]) -> None:
    from nemorun.config import Buildable

    print(_target(task))
    lines = []
    for row in rows:
        depth = row.path.count(".") + row.path.count("[")
        name = row.path.rpartition(".")[2]
        value = "" if isinstance(row.value, Buildable) else _text(row.value)
        meaning = f"{row.type}: {row.doc}" if row.doc else row.type
        lines.append(("  " * depth + name, value, "" if row.is_default else "set", meaning))
    table(("field", "value", "", "type: meaning"), lines)
    for note in _notes(task):
        print(note)


def _notes(task: Partial[Any]) -> list[str]:
    """What the task says of its arguments; nothing as long as some are missing or do not fit together."""
    from nemorun.config import notes_of

    try:
        return notes_of(task)
    except ConfigError:  # `nemorun run` says what is wrong
        return []


def _row_data(row: Row) -> dict[str, Any]:
    from nemorun.config import MISSING

    missing = row.value is MISSING
    value = None if missing else _plain(row.value)
    return {**row._asdict(), "value": value, "missing": missing}


def _text(value: Any) -> str:
    from nemorun.config import MISSING

    if value is MISSING:
        return "(required)"
    plain = _plain(value)
    return plain if isinstance(plain, str) and plain else repr(plain)


def _plain(value: Any) -> Any:
    """The value as JSON holds it: lists for all sequences and sets, names for what has one, else text."""
    from enum import Enum

    from nemorun.config import Buildable

    if value is None or (isinstance(value, bool | int | float | str) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Buildable):
        return _target(value)
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, set | frozenset):
        return sorted((_plain(one) for one in value), key=repr)
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    return str(value)


def _target(buildable: Any) -> str:
    target = buildable.__fn_or_cls__
    return f"{target.__module__}.{target.__qualname__}"


def _show_record(record: Record, yaml: bool, json: bool) -> None:
    from nemorun.experiment.record import EXPERIMENT_FILE, describe

    record.refresh()
    if yaml:
        print(_only_task_yaml(record), end="")
        return
    if json:
        as_json({**as_data(record), "facts": _plain(record.facts)})
        return
    print(record.read(record.folder / EXPERIMENT_FILE), end="")
    for name in record.statuses:
        print(f"\n# {name} {describe(record.statuses[name])}")
        print(_task_text(record, name).rstrip("\n"))


def _task_text(record: Record, name: str) -> str:
    spec = record.specs[name]
    if spec.task is None:
        return shlex.join(spec.command or ()) + "\n"
    return record.read(record.run_dirs[name] / "task.yaml")


def _only_task_yaml(record: Record) -> str:
    functions = [name for name, spec in record.specs.items() if spec.task]
    if len(functions) != 1:
        raise NemorunError(
            f"--yaml prints one task, and {record.name} ({record.id}) has {len(functions)} that could be; "
            f"they are stored in {record.folder}"
        )
    return _task_text(record, functions[0])
