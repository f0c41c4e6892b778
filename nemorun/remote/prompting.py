"""Asks the user what a host wants to know: a second factor, a password, a key's passphrase."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable
from pathlib import Path

from nemorun.remote.errors import AuthenticationFailed

#: Takes the question and whether the answer may be shown while it is typed; gives the answer.
Prompt = Callable[[str, bool], str]


def terminal(question: str, echo: bool) -> str:
    """Ask at the terminal, without control codes of the host's; AuthenticationFailed where there is none."""
    shown = "".join(letter for letter in question if letter.isprintable() or letter == "\n")
    if not sys.stdin.isatty():
        raise AuthenticationFailed(
            f"the host asks '{shown.strip()}', and there is no terminal to ask you at. Log in once from a "
            f"terminal "
            "with a shared connection (`ssh -M`, ControlPersist), which is then used, or give a key that "
            "needs no answer."
        )
    if not echo:
        return getpass.getpass(shown)
    with Path("/dev/tty").open("w") as tty:  # not stdout, which may be a file
        tty.write(shown)
    return sys.stdin.readline().rstrip("\n")
