"""What the shell offers after a TAB: recipes, the fields that can be overridden, executors and experiments.

A mistake on the line offers nothing: completion never prints an error between the user's words.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import typer

from nemorun.errors import NemorunError

Items = list[tuple[str, str]]


def complete_recipe(ctx: typer.Context, incomplete: str) -> Items:
    """Names of recipes with their first line."""
    try:
        return list(_recipes())
    except NemorunError:
        return []


def complete_override(ctx: typer.Context, incomplete: str) -> Items:
    """`a.b=` for every field of the recipe that the line names, and `executor.x=` for the executor's."""
    try:
        return [
            *_fields(ctx.params.get("recipe") or ctx.params.get("target")),
            *_executor_fields(ctx.params.get("executor")),
        ]
    except NemorunError:
        return []


def complete_executor(ctx: typer.Context, incomplete: str) -> Items:
    """Names of the configured executors."""
    from nemorun.workspace import executor_entries, find_workspace

    try:
        return [
            (name, str(entry.fields.get("type", "")))
            for name, entry in executor_entries(find_workspace()).items()
        ]
    except NemorunError:
        return []


def complete_experiment(ctx: typer.Context, incomplete: str) -> Items:
    """IDs of experiments, the newest first, with their names."""
    try:
        return list(_experiments())
    except NemorunError:
        return []


def complete_recipe_or_experiment(ctx: typer.Context, incomplete: str) -> Items:
    return [*complete_recipe(ctx, incomplete), *complete_experiment(ctx, incomplete)]


def _recipes() -> Iterator[tuple[str, str]]:
    from nemorun.config import available
    from nemorun.workspace import find_workspace

    for recipe in available(find_workspace().root):
        yield recipe.name, recipe.doc


def _fields(recipe: Any) -> Iterator[tuple[str, str]]:
    if not recipe:
        return
    from nemorun.config import find, resolve, tree
    from nemorun.workspace import find_workspace

    root = find_workspace().root
    found = find(recipe.partition("(")[0], root)
    if found.kind == "factory":
        for name in inspect.signature(found.factory).parameters:
            yield f"{name}=", "of the recipe"
    for row in tree(resolve(recipe, [], root)):
        if row.path:
            yield f"{row.path}=", row.doc


def _executor_fields(name: Any) -> Iterator[tuple[str, str]]:
    from nemorun.config import tree
    from nemorun.executors.configured import executor_config

    for row in tree(executor_config(name)):
        yield f"executor.{row.path}=", row.doc


def _experiments() -> Iterator[tuple[str, str]]:
    from nemorun.experiment import store

    for entry in store.entries(100):
        yield entry.id, entry.name
