"""Every error that a user can cause, and the exit code that it ends with.

The command line turns these into one paragraph on stderr (`nemorun.cli.main`); from Python they are
raised as they are. Anything else that escapes is a defect of nemorun and shows its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable


class NemorunError(Exception):
    """A mistake the user can mend: the message names the thing, the value, what is allowed and what to do."""

    exit_code = 2


class ConfigError(NemorunError):
    """A value, a name or a type in a configuration is wrong; the message starts with its dotted path."""


class OverrideError(ConfigError):
    """An override on the command line does not parse, or does not apply to anything."""


class DiscoveryError(NemorunError):
    """A recipe, executor, plugin or experiment of that name was not found, or more than one was."""


class PackagingError(NemorunError):
    """The code could not be frozen: too large, unreadable, or uncommitted where that is refused."""


class SubmitError(NemorunError):
    """An executor refused a job, or could not be reached; nothing was submitted."""


class SubmitUnclear(SubmitError):
    """The connection was lost in the middle, and could not be had again: it may have been submitted.

    The next command that asks about the experiment finds out.
    """

    exit_code = 1


class StoreError(NemorunError):
    """The experiment store cannot be read or written."""


class TaskFailed(NemorunError):
    """A task that was waited for did not succeed."""

    exit_code = 1


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest allowed name, or an empty text where none is near."""
    import difflib  # only a mistake needs it

    names = {one.lower(): one for one in allowed}
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    return f"; did you mean '{names[near[0]]}'?" if near else ""
