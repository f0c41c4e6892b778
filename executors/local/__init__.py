"""Runs jobs on this machine: one supervisor process an experiment, ranks as torchrun would start them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemorun.executors.local.executor import LocalExecutor as LocalExecutor

__all__ = ["LocalExecutor"]


def __getattr__(name: str) -> Any:
    # The supervisor lives in this package, too, and must not pay for the launcher's side of it.
    if name != "LocalExecutor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nemorun.executors.local.executor import LocalExecutor

    return LocalExecutor
