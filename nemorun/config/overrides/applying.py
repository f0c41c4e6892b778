"""Overrides applied to a configuration, in place and from left to right."""

from __future__ import annotations

import dataclasses
import operator
import typing
from collections.abc import Callable, Sequence
from typing import Any

from nemorun.config.buildable import Buildable, Config, check_name, peek
from nemorun.config.overrides import files
from nemorun.config.overrides.grammar import Override, Step, path_text, split_override
from nemorun.config.overrides.values import Discover, Reader
from nemorun.config.signature import MISSING, is_union, name_of, returned_type, type_of
from nemorun.config.validation import converted
from nemorun.errors import ConfigError, DiscoveryError, OverrideError, did_you_mean

_Change = Callable[[Any, Any], Any]

_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "+=": operator.add,
    "-=": operator.sub,
    "*=": operator.mul,
    "/=": operator.truediv,
    "|=": operator.or_,
    "&=": operator.and_,
}
_ALLOWED: dict[type, tuple[str, ...]] = {
    int: ("+=", "-=", "*=", "/=", "|=", "&="),
    float: ("+=", "-=", "*=", "/="),
    str: ("+=",),
    list: ("+=", "-="),
    tuple: ("+=",),
    set: ("|=", "&=", "-="),
    frozenset: ("|=", "&=", "-="),
    dict: ("|=",),
}


def apply(buildable: Buildable[Any], overrides: Sequence[str], *, discover: Discover | None = None) -> None:
    """Apply overrides one after the other; each sees what the ones before it did.

    `discover` finds a factory, class or function by name (default: as `find` does).
    Raises OverrideError, which names the override and what is allowed.
    """
    reader = Reader(discover or _discover)
    for text in overrides:
        override = split_override(text)
        try:
            if override.operator == "@":
                files.merge(buildable, files.load(override.value))
            else:
                _changed(buildable, Any, override.path, 0, _change_of(override, reader))
        except (ConfigError, DiscoveryError) as error:
            raise OverrideError(f"'{text}': {error}") from error


def _discover(name: str) -> Callable[..., Any]:
    from nemorun.config.discovery import find

    return find(name).factory


def _changed(value: Any, annotation: Any, path: Sequence[Step], depth: int, change: _Change) -> Any:
    """The value with what lies at `path[depth:]` in it changed; configurations are changed in place."""
    if depth == len(path):
        return change(value, annotation)
    step = path[depth]
    if value is MISSING and (kind := files.config_class(annotation)):
        value = Config(kind)
    if isinstance(value, Buildable):
        check_name(value, step.key)
        hint = type_of(value.__fn_or_cls__, step.key)
        value[step.key] = _changed(peek(value, step.key), hint, path, depth + 1, change)
        return value
    place = path_text(path[:depth])
    if isinstance(value, (list, tuple)):
        index = _index(step, value, place)
        items = list(value)
        items[index] = _changed(items[index], _item_type(annotation, value, index), path, depth + 1, change)
        return type(value)(items)
    if isinstance(value, dict):
        key, value_type = _key(step, annotation, value)
        if key not in value and depth + 1 < len(path):
            keys = [str(one) for one in value]
            hint = did_you_mean(step.key, keys) or "."
            raise OverrideError(f"{place} has no key '{step.key}'{hint} It has: {', '.join(keys) or 'none'}")
        new = _changed(value.get(key, MISSING), value_type, path, depth + 1, change)
        return {**value, key: new}
    if value is MISSING or value is None:
        what = _classes(annotation) or "…"
        raise OverrideError(f"{place} is {'not set' if value is MISSING else None}: set {place}={what} first")
    raise OverrideError(f"{place} is {value!r}, which has nothing called '{step.key}' in it")


def _classes(annotation: Any) -> str:
    """What could stand where nothing does: `Adam or SGD`."""
    kinds = typing.get_args(annotation) if is_union(annotation) else (annotation,)
    return " or ".join(name_of(one) for one in kinds if dataclasses.is_dataclass(one))


def _index(step: Step, value: Sequence[Any], place: str) -> int:
    try:
        index = int(step.key)
        value[index]
    except (ValueError, IndexError):
        raise OverrideError(f"{place} has {len(value)} items; '{step.key}' is not the index of one") from None
    return index


def _members(annotation: Any, kind: type) -> tuple[Any, ...]:
    """The type arguments that an annotation (or one side of it) has for lists, tuples or dictionaries."""
    for one in typing.get_args(annotation) if is_union(annotation) else (annotation,):
        origin = typing.get_origin(one)
        if isinstance(origin, type) and issubclass(kind, origin):
            return typing.get_args(one)
    return ()


def _item_type(annotation: Any, value: Any, index: int) -> Any:
    types = _members(annotation, type(value))
    if isinstance(value, tuple) and len(types) == len(value) and Ellipsis not in types:
        return types[index]
    return types[0] if types else Any


def _key(step: Step, annotation: Any, value: dict[Any, Any]) -> tuple[Any, Any]:
    """The key that is meant, and the type of its value."""
    key_type, value_type = _members(annotation, dict) or (Any, Any)
    for key in value:
        if str(key) == step.key:
            return key, value_type
    if key_type is Any and not step.item:
        return step.key, value_type
    return Reader(_discover).read(step.key, key_type), value_type


def _change_of(override: Override, reader: Reader) -> _Change:
    def assign(current: Any, annotation: Any) -> Any:
        if annotation is Any and isinstance(current, Buildable):  # untyped, but it holds a configuration
            annotation = returned_type(current.__fn_or_cls__)
        return reader.read(override.value, annotation)

    def operate(current: Any, annotation: Any) -> Any:
        allowed = _ALLOWED.get(type(current), ())
        if override.operator not in allowed:
            what = f"{override.place} is {current!r}"
            raise OverrideError(f"{what}, which takes {', '.join(('=', *allowed))}, not {override.operator}")
        kind = type(current)
        wanted = int | float if kind in (int, float) else annotation if _members(annotation, kind) else kind
        operand = reader.read(override.value, wanted)
        operation = _minus if (kind, override.operator) == (list, "-=") else _OPERATIONS[override.operator]
        try:
            result: Any = operation(current, operand)
        except (ValueError, ArithmeticError, TypeError) as error:
            raise OverrideError(f"{override.place} is {current!r}: {error}") from error
        if kind is int and isinstance(result, float) and result.is_integer():
            result = int(result)
        try:
            return converted(result, annotation)
        except ConfigError as error:
            raise OverrideError(f"{override.place}{error}") from error

    return assign if override.operator == "=" else operate


def _minus(items: list[Any], away: list[Any]) -> list[Any]:
    items = list(items)
    for one in away:
        if one not in items:
            raise ValueError(f"{one!r} is not in it")
        items.remove(one)
    return items
