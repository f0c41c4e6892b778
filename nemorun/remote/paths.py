"""Paths on the other machine, quoted for its shell; `~` and `$SCRATCH` keep their meaning."""

from __future__ import annotations

import re
import shlex

_HOME = re.compile(r"~([A-Za-z_][\w.-]*)?(?=/|$)")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def quote_path(path: str) -> str:
    """A word for a POSIX shell: a leading `~` or `~user` and `$NAME` expand there, all else is taken
    literally.

    A variable that is not set there is an error of the command, not an empty text: `$SCRATCH/x` never is
    `/x`.
    """
    words = []
    position = 0
    if home := _HOME.match(path):
        words.append(f"~{home[1]}" if home[1] else '"${HOME:?is not set}"')
        position = home.end()
    for variable in _VARIABLE.finditer(path, position):
        words.append(_literal(path[position : variable.start()]))
        words.append(f'"${{{variable[1] or variable[2]}:?is not set}}"')
        position = variable.end()
    words.append(_literal(path[position:]))
    word = "".join(words) or "''"
    return f"./{word}" if word.startswith("-") else word


def _literal(text: str) -> str:
    return shlex.quote(text) if text else ""
