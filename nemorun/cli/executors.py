"""`nemorun executors`: which there are, and whether one can be used from here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from nemorun.cli.app import new_app
from nemorun.cli.completion import complete_executor
from nemorun.cli.output import Json, as_json, note, table
from nemorun.errors import OverrideError

if TYPE_CHECKING:
    from nemorun.executors.base import Check
    from nemorun.workspace import ExecutorEntry

app = new_app()


@app.callback(invoke_without_command=True)
def executors(ctx: typer.Context, json: Json = False) -> None:
    """List the configured executors, or check one."""
    if ctx.invoked_subcommand is not None:
        return
    from nemorun.workspace import executor_entries, find_workspace

    workspace = find_workspace()
    default = workspace.settings.default_executor or "local"
    rows = [_data(name, entry, name == default) for name, entry in executor_entries(workspace).items()]
    if not any(row["default"] for row in rows):
        note(f"warning: the default_executor '{default}' is none of these")
    if json:
        as_json(rows)
        return
    table(
        ("name", "type", "fields", "from"),
        [
            (
                f"{row['name']} (default)" if row["default"] else row["name"],
                row["type"] or row["factory"],
                " ".join(f"{key}={value}" for key, value in row["fields"].items()),
                row["origin"] or "built in",
            )
            for row in rows
        ],
    )


def _word(line: Check) -> str:
    if not line.ok:
        return "FAILED"
    return "advice" if line.advice else "ok"


def _data(name: str, entry: ExecutorEntry, default: bool) -> dict[str, Any]:
    """The JSON of an executor; its keys are documented and stay."""
    fields = dict(entry.fields)
    return {
        "name": name,
        "type": fields.pop("type", None),
        "factory": fields.pop("factory", None),
        "fields": fields,
        "default": default,
        "origin": None if entry.origin is None else str(entry.origin),
    }


@app.command()
def check(
    name: Annotated[str, typer.Argument(metavar="NAME", autocompletion=complete_executor)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="executor.FIELD=VALUE", help="Check it with these fields, as `run` takes them."
        ),
    ] = None,
    json: Json = False,
) -> int:
    """Say whether an executor can be used from here, one line for each thing that must be so.

    Exit code 1 if one of them is not; advice is none of those.
    """
    from nemorun.cli.task import make_executor, split_executor
    from nemorun.workspace import find_workspace

    others, fields = split_executor(overrides or ())
    if others:
        raise OverrideError(f"'{others[0]}' is no field of the executor: write executor.FIELD=VALUE")
    checks = make_executor(name, fields, find_workspace()).check()
    good = all(line.ok for line in checks)
    if json:
        as_json({"name": name, "ok": good, "checks": [vars(line) for line in checks]})
    else:
        table(
            ("check", "result", ""),
            [(line.name, _word(line), line.message) for line in checks],
        )
    return 0 if good else 1
