"""`nemorun shell`: a shell where a task would run."""

from __future__ import annotations

from typing import Annotated

import typer

from nemorun.cli.completion import complete_recipe
from nemorun.cli.interactive import Env, Overrides, Secret, Where


def shell(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]",
            help="Whose resources and environment it has; without, the executor's alone.",
            autocompletion=complete_recipe,
        ),
    ] = None,
    overrides: Overrides = None,
    executor: Where = None,
    env: Env = None,
    secret: Secret = None,
) -> int:
    """Open a shell with an executor's resources.

    They are given back when it ends. The exit code is the shell's.
    """
    from nemorun.cli.interactive import session_key, sitting
    from nemorun.cli.run import environment
    from nemorun.cli.task import Request, is_override, recipe_name
    from nemorun.experiment.ids import to_name

    words = tuple(overrides or ())
    if recipe is not None and is_override(recipe):
        words = (recipe, *words)
        recipe = None
    name = "shell" if recipe is None else to_name(recipe_name(recipe))
    request = Request(
        recipe=recipe,
        overrides=words,
        rest=("bash",) if recipe is None else None,
        executor=executor,
        name=f"shell-{name}" if recipe else name,
        env=environment(env or ()),
        secrets=tuple(secret or ()),
    )
    with sitting(request, session_key("shell", name)) as place:
        return place.executor.shell(place.rendered, place.secrets)
