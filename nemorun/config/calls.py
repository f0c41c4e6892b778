"""From what a person writes, `llama3_8b(seq_length=4096)` and `key=value`, to the task."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from nemorun.config.buildable import Buildable, Partial, stored
from nemorun.config.discovery import Found, factories_in, find
from nemorun.config.factories import factory_name
from nemorun.config.overrides import apply, split_override
from nemorun.config.overrides.grammar import Override, split_call
from nemorun.config.overrides.values import Discover, Reader
from nemorun.config.signature import name_of, signature
from nemorun.errors import ConfigError, DiscoveryError, OverrideError, did_you_mean


def call_factory(found: Found, *arguments: str, workspace_root: Path | None = None) -> Any:
    """What the factory returns for arguments written as text, each `name=value` or a value by its position.

    A plain function or class is not called: it becomes a `Partial` with these arguments.
    """
    return _finish(_call_of(found, arguments, Reader(_discover_for(found, workspace_root))))


def resolve(recipe: str, overrides: Sequence[str] = (), workspace_root: Path | None = None) -> Partial[Any]:
    """The task that a recipe's name (or call) and overrides stand for.

    An override whose first name is a parameter of the factory, and no argument of the task that the factory
    makes, goes to the factory; the others change the task, from left to right.
    """
    name, arguments = split_call(recipe) or (recipe, [])
    found = find(name, workspace_root)
    discover = _discover_for(found, workspace_root)
    call = _call_of(found, arguments, Reader(discover))
    parts = [split_override(text) for text in overrides]
    if found.kind == "factory":
        theirs = _for_factory(call, parts, discover)
        apply(call, [one.text for one in theirs], discover=discover)
        parts = [one for one in parts if one not in theirs]
    task = _finish(call)
    if not isinstance(task, Partial):
        raise DiscoveryError(f"'{name}' makes {task!r}; a recipe makes a Partial")
    if found.kind == "factory":
        _check_names(parts, task, call)
    apply(task, [one.text for one in parts], discover=discover)
    return task


def _call_of(found: Found, arguments: Sequence[str], reader: Reader) -> Partial[Any]:
    call: Partial[Any] = Partial(found.factory)
    try:
        reader.bind(call, arguments)
    except ConfigError as error:
        raise OverrideError(str(error)) from error
    return call


def _finish(call: Partial[Any]) -> Any:
    if not factory_name(call.__fn_or_cls__):
        return call
    with redirect_stdout(sys.stderr):  # as while its file is loaded
        return stored(call())


def _for_factory(call: Partial[Any], overrides: Sequence[Override], discover: Discover) -> list[Override]:
    """The overrides that are meant for the factory.

    What the task takes is known only once the factory has been called, and it may need some of them for that.
    """
    takes = signature(call.__fn_or_cls__)
    parameters = takes.parameters
    candidates = [one for one in overrides if one.path and (takes.takes_any or one.path[0].key in parameters)]
    needed = [one for one in candidates if (it := parameters.get(one.path[0].key)) and it.required]
    if not candidates:
        return []
    trial = call.__copy__()
    apply(trial, [one.text for one in needed], discover=discover)
    task = _finish(trial)
    if not isinstance(task, Buildable):
        raise DiscoveryError(f"{name_of(call.__fn_or_cls__)} returns {task!r}; a recipe makes a Partial")
    taken = signature(task.__fn_or_cls__).parameters
    return [one for one in candidates if one in needed or one.path[0].key not in taken]


def _check_names(overrides: Sequence[Override], task: Partial[Any], call: Partial[Any]) -> None:
    """Refuse a name that neither the task nor the factory takes; either may have the one that was meant."""
    takes, made_by = signature(task.__fn_or_cls__), signature(call.__fn_or_cls__)
    known = [*takes.parameters, *made_by.parameters]
    for one in overrides:
        if one.path and one.path[0].key not in known and not takes.takes_any:
            hint = did_you_mean(one.path[0].key, known) or "."
            ours, theirs = name_of(task.__fn_or_cls__), name_of(call.__fn_or_cls__)
            raise OverrideError(
                f"'{one.text}': neither {ours} nor its recipe {theirs} has an argument "
                f"'{one.path[0].key}'{hint} {ours} takes: {', '.join(takes.parameters) or 'none'}; "
                f"{theirs} takes: {', '.join(made_by.parameters) or 'none'}"
            )


def _discover_for(found: Found, workspace_root: Path | None) -> Discover:
    """Finds what values name: a factory of the recipe's own file first, then as `find` does."""
    module = sys.modules.get(found.factory.__module__)
    own = factories_in(module) if module else {}

    def discover(name: str) -> Callable[..., Any]:
        return own.get(name) or find(name, workspace_root).factory

    return discover
