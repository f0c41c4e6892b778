"""Marks on functions: `factory` lets one be found by name; `resources` and `smoke` say what it needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from nemorun.config.buildable import Partial, built, peek
from nemorun.config.signature import MISSING, name_of, signature
from nemorun.errors import ConfigError

if TYPE_CHECKING:
    from nemorun.job import Resources

F = TypeVar("F", bound=Callable[..., Any])

FACTORY_MARK = "__nemorun_factory__"
RESOURCES_MARK = "__nemorun_resources__"
RESUMABLE_MARK = "__nemorun_resumable__"
SMOKE_MARK = "__nemorun_smoke__"
NOTES_MARK = "__nemorun_notes__"


@overload
def factory(fn: F, *, name: str | None = None) -> F: ...
@overload
def factory(fn: None = None, *, name: str | None = None) -> Callable[[F], F]: ...
def factory(fn: F | None = None, *, name: str | None = None) -> F | Callable[[F], F]:
    """Mark a function as a factory: it returns a `Partial` or a `Config` and is found by its name.

    The function itself stays as it is; `name` is the name it is found by, if not its own.
    """

    def mark(fn: F) -> F:
        if not inspect.isfunction(fn):
            raise ConfigError(f"@factory marks functions, not {fn!r}")
        setattr(fn, FACTORY_MARK, name or fn.__name__)
        return fn

    return mark if fn is None else mark(fn)


def factory_name(value: Any) -> str | None:
    """The name that a function was marked with, or None if it is no factory."""
    return vars(value).get(FACTORY_MARK) if inspect.isfunction(value) else None


def resources(rule: Callable[..., Resources], *, resumable: bool = False) -> Callable[[F], F]:
    """Say what a task function needs: `rule` gets those of its arguments that it takes, by name.

    `@run.resources(lambda trainer, **_: run.Resources(nodes=trainer.nodes, ntasks_per_node=trainer.devices))`

    `resumable`: on SIGTERM or SIGUSR2 it saves its state and ends with exit code 75 (`EXIT_RESUME`), and goes
    on from there when it is started again. Executors warn it then before a time limit or a preemption.
    """

    def mark(fn: F) -> F:
        setattr(fn, RESOURCES_MARK, rule)
        setattr(fn, RESUMABLE_MARK, resumable)
        return fn

    return mark


def is_resumable(partial: Partial[Any]) -> bool:
    """Does the task's function save its state when it is told to end?"""
    return bool(getattr(partial.__fn_or_cls__, RESUMABLE_MARK, False))


def smoke(partial: Partial[Any]) -> None:
    """Make the task one that only shows that it works: in seconds, on any machine.

    Its function says how, by a rule that maps its arguments to those that are replaced. Raises ConfigError
    where it has none.
    """
    target = partial.__fn_or_cls__
    rule = getattr(target, SMOKE_MARK, None)
    if rule is None:
        raise ConfigError(
            f"{name_of(target)} has no smoke run: it is for tasks that pretrain or finetune, whose sizes can "
            "be told apart from their layout"
        )
    arguments = {name: peek(partial, name) for name in signature(target).parameters}
    missing = [name for name, value in arguments.items() if value is MISSING]
    if missing:
        raise ConfigError(f"{name_of(target)} needs '{missing[0]}', and it is not set")
    for name, value in rule({name: built(value) for name, value in arguments.items()}).items():
        partial[name] = value


def resources_of(partial: Partial[Any]) -> Resources | None:
    """What the task asks for, or None where its function does not say.

    Raises ConfigError if an argument is missing.
    """
    rule = getattr(partial.__fn_or_cls__, RESOURCES_MARK, None)
    if rule is None:
        return None
    result: Resources = rule(**_asked_for(rule, partial))
    return result


def notes_of(partial: Partial[Any]) -> list[str]:
    """What the task's function says of its arguments, a line each, such as how much memory they need.

    Raises ConfigError if an argument is missing, or if they do not fit together.
    """
    rule = getattr(partial.__fn_or_cls__, NOTES_MARK, None)
    return [] if rule is None else list(rule(**_asked_for(rule, partial)))


def _asked_for(rule: Callable[..., Any], partial: Partial[Any]) -> dict[str, Any]:
    """Those of the task's arguments that `rule` takes. Raises ConfigError if one is missing."""
    target = partial.__fn_or_cls__
    asks = signature(rule)
    arguments = {}
    for name in {**signature(target).parameters, **partial.__arguments__}:
        if asks.takes_any or name in asks.parameters:
            value = peek(partial, name)
            if value is MISSING:
                raise ConfigError(f"{name_of(target)} needs '{name}', and it is not set")
            arguments[name] = built(value)
    return arguments
