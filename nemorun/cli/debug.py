"""`nemorun debug`: a shell in resources that are kept, where a recipe runs as often as one likes."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from nemorun.cli.completion import complete_recipe
from nemorun.cli.interactive import Env, Overrides, Secret, Where
from nemorun.cli.output import note


def debug(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="As in `nemorun run`.", autocompletion=complete_recipe)
    ],
    overrides: Overrides = None,
    executor: Where = None,
    env: Env = None,
    secret: Secret = None,
    release: Annotated[
        bool, typer.Option("--release", help="Give back what is kept for this recipe, and stop.")
    ] = False,
) -> int:
    """Open a shell where a recipe can be run again and again.

    The allocation is kept: the next `nemorun debug RECIPE` comes back to it with the code as it is then.
    """
    from nemorun.cli.interactive import interactive, session_key, sitting
    from nemorun.cli.run import environment
    from nemorun.cli.task import Request, make_executor, recipe_name, split_executor
    from nemorun.experiment.ids import to_name
    from nemorun.workspace import find_workspace

    name = to_name(recipe_name(recipe))
    key = session_key("debug", name)
    _, fields = split_executor(overrides or ())
    again = ["nemorun", "debug", recipe, *(["-e", executor] if executor else [])]
    again += [f"executor.{field}" for field in fields]  # other resources would be refused
    if release:
        given = interactive(make_executor(executor, fields, find_workspace())).release(f"{key}.{name}")
        note(f"given back: job {', '.join(given)}" if given else f"nothing is kept for '{name}'")
        return 0
    request = Request(
        recipe=recipe,
        overrides=tuple(overrides or ()),
        executor=executor,
        name=f"debug-{name}",
        env=environment(env or ()),
        secrets=tuple(secret or ()),
    )
    with sitting(request, key) as place:
        return place.executor.debug(place.rendered, place.secrets, shlex.join(again))
