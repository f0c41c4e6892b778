"""What an executor offers that can put a person's terminal where its tasks run. Not all can."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from nemorun.executors.base import Rendered
from nemorun.job import JobRef, JobSpec


@runtime_checkable
class Interactive(Protocol):
    """Each of these takes the terminal until the person leaves. A submission here holds one task."""

    def shell(self, rendered: Rendered, secrets: Mapping[str, str]) -> int:
        """A shell with the task's resources, in its environment; they are given back at its end.

        Returns the shell's exit code.
        """

    def debug(self, rendered: Rendered, secrets: Mapping[str, str], again: str) -> int:
        """The same, where the task itself can be run; the resources are kept, and found at the next call.

        `again` is the command line that comes back. Returns the shell's exit code.
        """

    def release(self, token: str) -> list[str]:
        """Give back what `debug` has kept for the task of that token; the handles of what was given back."""

    def attach(self, ref: JobRef, job: JobSpec, rank: int) -> int:
        """A shell beside that rank of a running task. Returns its exit code. SubmitError if none runs."""
