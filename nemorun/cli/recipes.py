"""`nemorun recipes`: what can be run by name."""

from __future__ import annotations

from nemorun.cli.output import Json, as_json, note, table


def recipes(json: Json = False) -> None:
    """List the recipes that can be run.

    They come with nemorun, stand in the workspace's recipes/, or are installed by other packages.
    """
