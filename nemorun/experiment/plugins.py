"""Plugins: change a task and its executor just before they are checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from nemorun.config import Partial
    from nemorun.executors.base import Executor
    from nemorun.experiment.tasks import Command, Script


class Plugin(Protocol):
    """Anything with `setup`. Both arguments are the run's own copies: change them as you like."""

    def setup(self, task: Partial[Any] | Script | Command, executor: Executor) -> None: ...
