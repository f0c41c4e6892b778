"""What an executor offers that can stop tasks and let them go on later. Not all can."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from nemorun.job import JobRef


@runtime_checkable
class Suspending(Protocol):
    """Both are idempotent, leave alone what has ended, and return when the executor has taken the order."""

    def suspend(self, refs: Sequence[JobRef]) -> None:
        """Stop these tasks' ranks and give their resources back; resumable ones save their state first.

        Those that have not started do not start.
        """

    def resume(self, refs: Sequence[JobRef]) -> None:
        """Let these tasks go on; those that were not suspended stay as they are."""
