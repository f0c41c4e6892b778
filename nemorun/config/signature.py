"""What a callable takes: the names, defaults and types of its arguments."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any, Final


class _Missing:
    """No value at all, where None is a value like any other."""

    def __repr__(self) -> str:
        return "<not set>"

    def __bool__(self) -> bool:
        return False


MISSING: Final = _Missing()


@dataclass(frozen=True)
class Parameter:
    """One argument that can be given by name."""

    name: str
    value: Any = MISSING
    factory: Callable[[], Any] | None = None

    @property
    def required(self) -> bool:
        return self.value is MISSING and self.factory is None

    def default(self) -> Any:
        """The default, made anew where it comes from a `default_factory`; MISSING if there is none."""
        return self.factory() if self.factory else self.value


@dataclass(frozen=True)
class Signature:
    parameters: Mapping[str, Parameter]
    takes_any: str | None
    """The name of its `**kwargs`, where it has them: every name is allowed."""
    unnamed: tuple[str, ...] = ()
    """Required arguments that can only be given by position, which no task and no Config does."""


def name_of(target: Any) -> str:
    """How a callable is called in messages."""
    return getattr(target, "__qualname__", None) or repr(target)


@cache
def signature(target: Callable[..., Any]) -> Signature:
    try:
        found = list(inspect.signature(target).parameters.values())
    except ValueError:  # some builtins tell nothing
        return Signature({}, takes_any="kwargs")
    factories = {}
    if dataclasses.is_dataclass(target):
        factories = {
            field.name: field.default_factory
            for field in dataclasses.fields(target)
            if field.default_factory is not dataclasses.MISSING
        }
    parameters = {}
    for one in found:
        if one.kind not in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY):
            continue
        if one.name in factories:
            parameters[one.name] = Parameter(one.name, factory=factories[one.name])
        else:
            value = MISSING if one.default is one.empty else one.default
            parameters[one.name] = Parameter(one.name, value)
    takes_any = next((one.name for one in found if one.kind is one.VAR_KEYWORD), None)
    unnamed = (one.name for one in found if one.kind is one.POSITIONAL_ONLY and one.default is one.empty)
    return Signature(parameters, takes_any, tuple(unnamed))


def type_of(target: Callable[..., Any], name: str) -> Any:
    """An argument's type; `Any` where none is written or where it cannot be resolved."""
    if name in (hints := _argument_hints(target)):
        return hints[name]
    rest = _hints(target).get(signature(target).takes_any or "", Any)
    return Any if "Unpack[" in str(rest) else rest  # that is the type of all of them together


@cache
def _argument_hints(target: Callable[..., Any]) -> Mapping[str, Any]:
    hints = _hints(target)
    result = {}
    for parameter in signature(target).parameters.values():
        hint = hints.get(parameter.name, Any)
        if isinstance(hint, dataclasses.InitVar):
            hint = hint.type
        if parameter.value is None and hint is not Any:
            hint = typing.Union[hint, None]  # noqa: UP007 # a text cannot be |-ed
        result[parameter.name] = hint
    return result


def returned_type(target: Callable[..., Any]) -> Any:
    """What calling it gives: the class itself, or a function's return type; `Any` where it has none."""
    return target if isinstance(target, type) else _hints(target).get("return", Any)


def _hints(target: Any) -> dict[str, Any]:
    """The types as they are written on the target, `return` included; what cannot be resolved is left out."""
    if isinstance(target, type):
        # A dataclass's own __init__ could not resolve inherited fields; a named tuple has none.
        own = not dataclasses.is_dataclass(target) and inspect.isfunction(target.__init__)  # type: ignore[misc] # reads it
        holder = target.__init__ if own else target  # type: ignore[misc] # reads it
    elif hasattr(target, "__annotations__"):
        holder = target
    else:  # a functools.partial, an object with __call__
        holder = getattr(target, "func", type(target).__call__)
    try:
        return typing.get_type_hints(holder, include_extras=True)
    except (NameError, TypeError, SyntaxError, AttributeError):
        return _hints_one_by_one(holder)


def _hints_one_by_one(holder: Any) -> dict[str, Any]:
    """Where one type cannot be resolved (a class of a function's body, TYPE_CHECKING), the others."""
    result = {}
    for owner in reversed(holder.__mro__) if isinstance(holder, type) else [holder]:
        names = getattr(owner, "__globals__", None) or vars(sys.modules[owner.__module__])
        for name, hint in inspect.get_annotations(owner).items():
            try:
                one = SimpleNamespace(__annotations__={name: hint})
                result.update(typing.get_type_hints(one, names, include_extras=True))
            except (NameError, TypeError, SyntaxError, AttributeError):
                continue
    return result


def type_text(annotation: Any) -> str:
    """A type as a person writes it: `int | None`, `list[str]`, `Trainer`."""
    if annotation is Any or annotation is inspect.Parameter.empty:
        return "any"
    if annotation is None or annotation is type(None):
        return "None"
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if is_union(annotation):
        return " | ".join(type_text(one) for one in arguments)
    if origin is typing.Literal:
        return " | ".join(repr(getattr(one, "value", one)) for one in arguments)
    if origin is typing.Annotated:
        return type_text(arguments[0])
    if isinstance(annotation, list):  # the arguments of a Callable
        return f"[{', '.join(map(type_text, annotation))}]"
    if annotation is Ellipsis:
        return "..."
    if origin is not None and arguments:
        return f"{type_text(origin)}[{', '.join(map(type_text, arguments))}]"
    return getattr(annotation, "__qualname__", None) or str(annotation).removeprefix("typing.")


def is_union(annotation: Any) -> bool:
    # `int | None` is a types.UnionType until Python 3.14 makes the two one.
    return typing.get_origin(annotation) in (typing.Union, type(int | None))
