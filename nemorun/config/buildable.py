"""`Partial` and `Config`: a callable and the arguments that it will be called with.

Nothing is shared: every value is copied when it is stored, so that changing one configuration never
changes another.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from nemorun.config.signature import MISSING, name_of, signature
from nemorun.errors import ConfigError, did_you_mean

T = TypeVar("T")


class UnknownArgument(ConfigError, AttributeError):
    """A name that the target does not take, or an argument that has no value yet."""


class Buildable(Generic[T]):
    """A callable (`__fn_or_cls__`) with some of its arguments bound by name (`__arguments__`).

    Reading an attribute gives the argument or its default, writing one binds it, deleting one goes back to
    the default. `x["build"]` reaches an argument whose name is a method's.
    """

    __slots__ = ("__arguments__", "__fn_or_cls__")

    __fn_or_cls__: Callable[..., T]
    __arguments__: dict[str, Any]

    def __init__(self, target: Callable[..., T], /, *unnamed: Any, **arguments: Any) -> None:
        if unnamed:
            raise ConfigError(f"{name_of(target)} is given {unnamed[0]!r} without a name: write NAME=VALUE")
        if isinstance(target, Buildable) or not callable(target):
            raise ConfigError(f"{type(self).__name__} takes a function or a class, not {target!r}")
        if isinstance(target, functools.partial):  # it has no name to be found by; its function has
            if target.args:
                raise ConfigError(f"{target!r} binds arguments by position: bind them by name")
            arguments = {**target.keywords, **arguments}
            target = target.func
        object.__setattr__(self, "__fn_or_cls__", target)
        object.__setattr__(self, "__arguments__", {})
        for name, value in arguments.items():
            self[name] = value

    def __getitem__(self, name: str) -> Any:
        check_name(self, name)
        value = peek(self, name)
        if value is MISSING:
            raise UnknownArgument(f"'{name}' of {name_of(self.__fn_or_cls__)} is not set and has no default")
        if isinstance(value, (Buildable, list, dict, set, tuple)):
            self.__arguments__[name] = value  # so that what is written into a default stays
        return value

    def __setitem__(self, name: str, value: Any) -> None:
        check_name(self, name)
        self.__arguments__[name] = stored(value)

    def __delitem__(self, name: str) -> None:
        check_name(self, name)
        self.__arguments__.pop(name, None)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):  # what copy, typing and notebooks ask for
            raise AttributeError(name)
        return self[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(f"{name} cannot be changed")
        if hasattr(type(self), name):
            raise ConfigError(f"'{name}' is a method here; the argument is written x['{name}'] = …")
        self[name] = value

    def __delattr__(self, name: str) -> None:
        del self[name]

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *signature(self.__fn_or_cls__).parameters})

    def __copy__(self: B) -> B:
        return type(self)(self.__fn_or_cls__, **self.__arguments__)

    def __deepcopy__(self: B, memo: dict[int, Any]) -> B:
        return self.__copy__()

    def __eq__(self, other: object) -> bool:
        """By value: an argument that equals its default counts the same as one left out."""
        if dataclasses.is_dataclass(other) and not isinstance(other, type):
            other = stored(other)
        if not isinstance(other, Buildable) or type(self) is not type(other):
            return NotImplemented
        return self.__fn_or_cls__ == other.__fn_or_cls__ and all(
            peek(self, name) == peek(other, name) for name in {**self.__arguments__, **other.__arguments__}
        )

    __hash__ = None  # type: ignore[assignment] # it can be changed, so it cannot be a key

    def __repr__(self) -> str:
        arguments = "".join(f", {name}={value!r}" for name, value in self.__arguments__.items())
        return f"{type(self).__name__}({name_of(self.__fn_or_cls__)}{arguments})"


B = TypeVar("B", bound=Buildable[Any])


class Config(Buildable[T]):
    """A class (or a function) to be called when it is built: `Config(Trainer, max_steps=10)`."""

    __slots__ = ()

    def build(self) -> T:
        """The instance, nested configurations built first. Raises ConfigError if an argument is missing."""
        return self.__fn_or_cls__(**built_arguments(self))


class Partial(Buildable[T]):
    """A function with bound arguments, to be called later: `Partial(train, steps=10)`; what a task is."""

    __slots__ = ()

    def build(self) -> functools.partial[T]:
        """A `functools.partial` with nested configurations built."""
        return functools.partial(self.__fn_or_cls__, **built_arguments(self, required=False))

    def __call__(self, **more: Any) -> T:
        """Build and call; `more` wins over the arguments that are bound."""
        for name in more:
            check_name(self, name)
        return self.__fn_or_cls__(**built_arguments(self, without=more), **more)


def check_name(buildable: Buildable[Any], name: str) -> None:
    """Raises UnknownArgument, with the nearest name, unless the target takes an argument of this name."""
    target = buildable.__fn_or_cls__
    known = signature(target)
    if name in known.parameters or known.takes_any:
        return
    hint = did_you_mean(name, known.parameters) or "."
    raise UnknownArgument(
        f"{name_of(target)} has no argument '{name}'{hint} It takes: {', '.join(known.parameters) or 'none'}"
    )


def peek(buildable: Buildable[Any], name: str) -> Any:
    """An argument's value, or its default, or MISSING; unlike reading the attribute it stores nothing."""
    if name in buildable.__arguments__:
        return buildable.__arguments__[name]
    parameter = signature(buildable.__fn_or_cls__).parameters.get(name)
    return MISSING if parameter is None else stored(parameter.default())


def stored(value: Any) -> Any:
    """A copy of the value, as it is kept: a dataclass instance becomes a `Config` of its class."""
    if isinstance(value, Buildable):
        return value.__copy__()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _config_of(value)
    if type(value) in (list, tuple):
        return type(value)(stored(one) for one in value)
    if type(value) is dict:
        return {key: stored(one) for key, one in value.items()}
    if type(value) in (set, frozenset):
        if any(isinstance(stored(one), Buildable) for one in value):
            raise ConfigError("a set cannot hold dataclasses or configurations: use a list or a tuple")
        return type(value)(value)
    return value


def is_key(value: Any) -> bool:
    """Whether the value can be a key of a dictionary."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _config_of(instance: Any) -> Config[Any]:
    kind: Callable[..., Any] = type(instance)
    result: Config[Any] = Config(kind)
    for parameter in signature(kind).parameters.values():
        value = stored(getattr(instance, parameter.name, MISSING))
        default = stored(parameter.default())
        if value is not MISSING and (type(value) is not type(default) or value != default):
            result.__arguments__[parameter.name] = value
    return result


def built(value: Any) -> Any:
    """The value with every configuration within it built."""
    if isinstance(value, (Config, Partial)):
        return value.build()
    if type(value) in (list, tuple):
        return type(value)(built(one) for one in value)
    if type(value) is dict:
        return {key: built(one) for key, one in value.items()}
    return value


def built_arguments(
    buildable: Buildable[Any], *, without: Iterable[str] = (), required: bool = True
) -> dict[str, Any]:
    """Name -> built value, of what is bound and of defaults that are themselves configurations.

    Raises ConfigError if a required argument is missing (unless `required` is false).
    """
    parameters = signature(buildable.__fn_or_cls__).parameters.values()
    arguments = {one.name: one.value for one in parameters if isinstance(one.value, Buildable)}
    arguments.update(buildable.__arguments__)
    missing = [one.name for one in parameters if one.required and one.name not in {*arguments, *without}]
    if missing and required:
        raise ConfigError(
            f"{name_of(buildable.__fn_or_cls__)} needs {', '.join(map(repr, missing))}, not set yet"
        )
    return {name: built(value) for name, value in arguments.items() if name not in without}
