"""`nemorun recipes`: what can be run by name."""

from __future__ import annotations

from pathlib import Path

from nemorun.cli.output import Json, as_json, table


def recipes(json: Json = False) -> None:
    """List the recipes that can be run.

    They come with nemorun, stand in the workspace's recipes/, or belong to an installed package.
    """
    from nemorun.config import available
    from nemorun.workspace import find_workspace

    found = available(find_workspace().root)
    if json:
        as_json(
            [
                {
                    "name": recipe.name,
                    "doc": recipe.doc,
                    "parameters": list(recipe.parameters),
                    "origin": None if recipe.origin is None else str(recipe.origin),
                }
                for recipe in found
            ]
        )
        return
    table(
        ("recipe", "what it does", "parameters", "from"),
        [(recipe.name, recipe.doc, ", ".join(recipe.parameters), _origin(recipe.origin)) for recipe in found],
    )


def _origin(path: Path | None) -> str:
    """Where a recipe stands, as short as it can be said from here."""
    import nemorun.recipes

    if path is None:
        return ""
    if path.is_relative_to(Path(nemorun.recipes.__file__).resolve().parent):
        return "nemorun"
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
