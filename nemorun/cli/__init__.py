"""The command line. Importing it costs nothing: all that it holds is `run.cli.factory`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemorun.lazy import lazily

if TYPE_CHECKING:
    from nemorun.config import factory

__all__ = ["factory"]

__all__ = [
    "factory",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "nemorun.config": ("factory",),
    },
)
