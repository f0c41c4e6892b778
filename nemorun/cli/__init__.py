"""The command line. Importing it costs nothing: all that it holds is `run.cli.factory`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemorun.config import factory as factory

__all__ = ["factory"]


def __getattr__(name: str) -> Any:
    if name != "factory":
        raise AttributeError(f"module 'nemorun.cli' has no attribute {name!r}")
    from nemorun.config import factory

    return factory
