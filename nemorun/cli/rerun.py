"""`nemorun rerun`: the recorded configuration and code, once more."""

from __future__ import annotations

from typing import Annotated

import typer

from nemorun.cli.experiments import Detach, DryRun, Id


def rerun(
    experiment: Id,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Changes to the recorded configuration.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on in the old results folder, from the last checkpoint.")
    ] = False,
    dry_run: DryRun = False,
    detach: Detach = False,
) -> None:
    """Run a recorded experiment again.

    The code is the recorded one, too, whatever stands in the folder now.
    """
    from nemorun.cli.run import launch
    from nemorun.experiment import rerun as again

    launch(again(experiment, overrides or (), resume=resume), detach, dry_run)
