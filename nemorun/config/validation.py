"""Checks a configuration before anything runs: types by pydantic, then the configurations' own `validate()`.

Types are strict: what is stored back is the value that was given, or one that lost nothing on the way
(text to Path, int to float, a name to its Enum member, a list to the tuple or set that is asked for).
"""

from __future__ import annotations

import dataclasses
import traceback
import typing
from collections.abc import Iterator, Mapping, MutableMapping, MutableSequence, Sequence
from collections.abc import Set as AbstractSet
from enum import Enum
from functools import partial
from pathlib import PurePath
from typing import Annotated, Any, Literal

from nemorun.config.buildable import Buildable, Config, Partial, stored
from nemorun.config.signature import (
    MISSING,
    is_union,
    name_of,
    returned_type,
    signature,
    type_of,
    type_text,
)
from nemorun.errors import ConfigError

_SCALARS = (bool, int, float, str, bytes, complex)
_SEQUENCES = (list, tuple, Sequence, MutableSequence)
_CONTAINERS = (*_SEQUENCES, set, frozenset, dict, Mapping, MutableMapping, AbstractSet)


def validate(buildable: Buildable[Any]) -> None:
    """Check every argument, nested ones too; values that were converted without loss are stored back.

    A dataclass is built in order to call its `validate()`, unless something other than dataclasses would
    have to be built for it. Raises ConfigError with one line a bad field, each starting with its dotted path.
    """
    problems: list[str] = []
    _check_types(buildable, "", problems)
    if not problems:  # a validate() may trust the types
        _instance(buildable, "", problems)
    if problems:
        raise ConfigError("\n".join(problems))


def _check_types(buildable: Buildable[Any], path: str, problems: list[str]) -> None:
    target = buildable.__fn_or_cls__
    for name, value in buildable.__arguments__.items():
        place = f"{path}.{name}" if path else name
        value = value if isinstance(value, Buildable) else stored(value)  # dataclasses put into a list later
        try:
            buildable.__arguments__[name] = converted(value, type_of(target, name))
        except ConfigError as error:
            problems.extend(f"{place}{line}" for line in str(error).splitlines())
        for inner_place, inner in _buildables(value, place):
            _check_types(inner, inner_place, problems)
    if isinstance(buildable, Config) or not path:  # a nested Partial gets the rest when it is called
        problems.extend(
            f"{path}.{one.name}: {name_of(target)} needs it, and it is not set".removeprefix(".")
            for one in signature(target).parameters.values()
            if one.required and one.name not in buildable.__arguments__
        )
        problems.extend(
            f"{path}.{name}: {name_of(target)} takes it by position only, not by name".removeprefix(".")
            for name in signature(target).unnamed
        )


def _buildables(value: Any, path: str) -> Iterator[tuple[str, Buildable[Any]]]:
    """The outermost configurations in a value, each with its path."""
    if isinstance(value, Buildable):
        yield path, value
    elif isinstance(value, (list, tuple)):
        for index, one in enumerate(value):
            yield from _buildables(one, f"{path}[{index}]")
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _buildables(one, f"{path}[{key!r}]")


def converted(value: Any, annotation: Any) -> Any:
    """The value as the type asks for it. Raises ConfigError, one line a problem: `[index]: what is wrong`."""
    if _obvious(value, annotation):
        return value
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(_strict(annotation)).validate_python(value)
    except ValidationError as error:
        lines = []
        for one in error.errors(include_url=False):
            place = "".join(f"[{part!r}]" for part in one["loc"])
            lines.append(f"{place}: {one['msg']}".replace("\n", " "))
        raise ConfigError("\n".join(lines)) from None


def _obvious(value: Any, annotation: Any) -> bool:
    """Right at first sight: most configurations are checked without the time that loading pydantic takes."""
    if annotation is Any or type(value) is annotation or (value is None and annotation is type(None)):
        return True
    if is_union(annotation):
        return any(_obvious(value, one) for one in typing.get_args(annotation))
    if typing.get_origin(annotation) is Literal:
        return any(type(value) is type(one) and value == one for one in typing.get_args(annotation))
    if isinstance(value, Buildable):
        return fits(value, annotation)
    if isinstance(value, (Enum, PurePath)):
        return isinstance(annotation, type) and isinstance(value, annotation)
    return False


def _strict(annotation: Any) -> Any:
    """For pydantic: every part of the annotation goes through `_check`, which knows configurations."""
    from pydantic import Strict, WrapValidator

    annotation = getattr(annotation, "__supertype__", annotation)  # NewType
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    inner: Any = Any  # left to _check
    if is_union(annotation):
        inner = typing.Union[tuple(_strict(one) for one in arguments)]  # noqa: UP007 # made at run time
    elif origin is Annotated:
        parts = (_strict(arguments[0]), *annotation.__metadata__)
        inner = typing.cast(Any, Annotated)[parts]
    elif origin in _CONTAINERS:
        inner = origin[tuple(one if one is Ellipsis else _strict(one) for one in arguments)]
    elif typing.is_typeddict(annotation):
        inner = _strict_dict(annotation)
    elif annotation in _SCALARS:
        inner = Annotated[annotation, Strict()]
    elif annotation in _CONTAINERS or annotation in (None, type(None)) or _is_path(annotation):
        inner = annotation
    return Annotated[inner, WrapValidator(partial(_check, annotation))]


def _strict_dict(annotation: Any) -> Any:
    """The same TypedDict, its values `_strict`; a key that it has not is refused."""
    from typing_extensions import NotRequired, TypedDict  # of pydantic, which takes this one on every Python

    required = annotation.__required_keys__
    fields = {
        name: _strict(hint) if name in required else NotRequired[_strict(hint)]
        for name, hint in typing.get_type_hints(annotation).items()
    }
    make: Any = TypedDict  # type checkers know it as a base class only
    made = make(annotation.__name__, fields)
    made.__pydantic_config__ = {"extra": "forbid"}
    return made


def _is_path(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, PurePath)


def _check(annotation: Any, value: Any, handler: Any) -> Any:
    """One part of a type against one part of a value; `handler` is pydantic's own check of it."""
    from pydantic import ValidationError
    from pydantic_core import PydanticCustomError

    def wrong(why: str) -> PydanticCustomError:
        # The template language of these messages would take braces in the value for its own.
        return PydanticCustomError("type", "{message}", {"message": why})

    expected = f"{value!r} is not {type_text(annotation)}"
    if isinstance(value, Buildable):
        if fits(value, annotation):
            return value
        raise wrong(expected)
    kind = typing.get_origin(annotation) or annotation
    if isinstance(kind, type) and issubclass(kind, Enum) and not isinstance(value, kind):
        member = enum_member(kind, value)
        if member is None:
            raise wrong(f"{expected}; one of {', '.join(repr(one.value) for one in kind)}")
        return member
    if kind is Literal and not _obvious(value, annotation):  # pydantic takes True for Literal[1]
        raise wrong(expected)
    if kind in _SEQUENCES and isinstance(value, (set, frozenset)):  # it has no order that a list could keep
        raise wrong(expected)
    if not _is_instance(kind, annotation, value):
        raise wrong(expected)
    try:
        return handler(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "type" and not is_union(annotation):  # a part's: its own message and place
            raise
        if kind is Annotated:
            raise wrong(f"{value!r} is not allowed: {first['msg']}") from None
        if typing.is_typeddict(annotation):
            raise wrong(f"{expected}, which has {', '.join(annotation.__annotations__)}") from None
        raise wrong(expected) from None


def _is_instance(kind: Any, annotation: Any, value: Any) -> bool:
    """Whether a value is of a class that pydantic is not asked about; True for what is no class."""
    if kind in (*_SCALARS, *_CONTAINERS, Any, Annotated) or is_union(annotation) or _is_path(kind):
        return True  # pydantic's to say
    if kind is type:
        bounds = [one for one in typing.get_args(annotation) if isinstance(one, type)]
        return isinstance(value, type) and all(issubclass(value, one) for one in bounds)
    try:
        return not isinstance(kind, type) or isinstance(value, kind)
    except TypeError:  # a Protocol that cannot be checked at run time, a TypedDict
        return True


def enum_member(kind: type[Enum], value: Any) -> Enum | None:
    """The member of this value, or of this name; None if there is neither."""
    for member in kind:
        if member.value == value and type(member.value) is type(value):
            return member
    return kind.__members__.get(value) if isinstance(value, str) else None


def fits(buildable: Buildable[Any], annotation: Any) -> bool:
    """Whether what the configuration builds is of this type, as far as its target tells."""
    if is_union(annotation):
        return any(fits(buildable, one) for one in typing.get_args(annotation))
    if typing.get_origin(annotation) is Annotated:
        return fits(buildable, typing.get_args(annotation)[0])
    kind = typing.get_origin(annotation) or annotation
    if not isinstance(kind, type):
        return annotation is Any or isinstance(annotation, typing.TypeVar)
    if isinstance(buildable, kind):
        return True
    given = partial if isinstance(buildable, Partial) else returned_type(buildable.__fn_or_cls__)
    given = typing.get_origin(given) or given
    try:
        return not isinstance(given, type) or given is Any or issubclass(given, kind)
    except TypeError:  # a Protocol with attributes
        return True


def _instance(value: Any, path: str, problems: list[str]) -> Any:
    """The value built and every `validate()` called, or MISSING if more than dataclasses were to be built."""
    if isinstance(value, (list, tuple)):
        items = [_instance(one, f"{path}[{index}]", problems) for index, one in enumerate(value)]
        return MISSING if any(one is MISSING for one in items) else type(value)(items)
    if isinstance(value, dict):
        values = {key: _instance(one, f"{path}[{key!r}]", problems) for key, one in value.items()}
        return MISSING if any(one is MISSING for one in values.values()) else values
    if not isinstance(value, Buildable):
        return value
    target, arguments = value.__fn_or_cls__, {}
    for name, one in value.__arguments__.items():
        arguments[name] = _instance(one, f"{path}.{name}" if path else name, problems)
    if any(one is MISSING for one in arguments.values()):
        return MISSING
    if isinstance(value, Partial):
        return partial(target, **arguments)
    if not dataclasses.is_dataclass(target):
        return MISSING
    try:
        instance = target(**arguments)
        check = getattr(instance, "validate", None)
        if callable(check):
            check()
    except (AssertionError, ValueError, TypeError, ConfigError) as error:
        problems.append(f"{path or name_of(target)}: {_reason(error)}")
        return MISSING
    return instance


def _reason(error: Exception) -> str:
    if isinstance(error, AssertionError) and not str(error):
        line = traceback.extract_tb(error.__traceback__)[-1].line or "an assertion"
        return f"{line.removeprefix('assert ')} does not hold"
    return str(error)
