"""`nemorun run`: turn one line into an experiment, and run it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nemorun.cli.completion import complete_executor, complete_override, complete_recipe
from nemorun.cli.experiments import Detach, DryRun
from nemorun.cli.output import confirm
from nemorun.errors import NemorunError

if TYPE_CHECKING:
    from nemorun.experiment import Experiment

#: A sweep of more tasks than this is confirmed first.
MANY = 20

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def run(
    ctx: typer.Context,
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="A recipe's name, FILE.py:NAME, a dotted path, a call like 'NAME(x=1)', or a script.",
            autocompletion=complete_recipe,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Applied left to right: a.b=1, +=, -=, *=, /=, |=, &=, @file.yaml, executor.nodes=4.",
            autocompletion=complete_override,
        ),
    ] = None,
    executor: Annotated[
        str | None,
        typer.Option(
            "--executor",
            "-e",
            metavar="NAME",
            help="Where to run; see `nemorun executors`.",
            autocompletion=complete_executor,
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="The experiment's name.")] = None,
    dry_run: DryRun = False,
    detach: Detach = False,
    yaml: Annotated[
        Path | None,
        typer.Option("--yaml", metavar="FILE", help="Run the task that is stored in this file (-: stdin)."),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=A,B,C", help="One task for each value; several sweeps make a grid."),
    ] = None,
    retries: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="How often a failed task is started again.")
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A variable of the task's environment.")
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A variable whose value is taken at submission and stored nowhere."
        ),
    ] = None,
    plugin: Annotated[
        list[str] | None,
        typer.Option(metavar="PLUGIN", help="FILE.py:NAME or a dotted path of a plugin; applied in order."),
    ] = None,
    smoke: Annotated[
        bool,
        typer.Option(
            "--smoke",
            help="Only try it: same family and layout, tiny sizes, 3 steps on the CPU, bundled text.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Answer every question with yes.")] = False,
) -> None:
    """Run a recipe, a script or a command.

    nemorun run RECIPE a.b=1 executor.nodes=4 runs a recipe with overrides.

    nemorun run script.py -- ARGS runs a script, and nemorun run -- COMMAND any command.
    """
    from nemorun.cli.task import Request, assemble

    request = Request(
        recipe=recipe,
        overrides=tuple(overrides or ()),
        rest=None if (rest := ctx.meta.get("rest")) is None else tuple(rest),
        yaml=yaml,
        sweeps=tuple(sweep or ()),
        executor=executor,
        name=name,
        retries=retries,
        env=environment(env or ()),
        secrets=tuple(secret or ()),
        plugins=tuple(plugin or ()),
        smoke=smoke,
    )
    experiment = assemble(request, confirm=lambda count: _confirm_many(count, yes or dry_run))
    launch(experiment, detach, dry_run)


def launch(experiment: Experiment, detach: bool, dry_run: bool) -> None:
    """Run an experiment to its end, or only submit it and print its ID. Raises TaskFailed."""
    if dry_run:
        print(experiment.dry_run(), end="")
        return
    experiment.run(detach=detach)
    if detach:
        from nemorun.experiment.follow import announce

        announce(experiment.record)
        print(experiment.id)


def _confirm_many(count: int, yes: bool) -> None:
    if count > MANY:
        confirm(f"This sweep makes {count} tasks. Go on?", yes)


def environment(pairs: Sequence[str]) -> dict[str, str]:
    values = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not _VARIABLE.fullmatch(name):
            raise NemorunError(
                f"--env {pair} is not NAME=VALUE; to pass a variable on without showing it, use --secret NAME"
            )
        values[name] = value
    return values
