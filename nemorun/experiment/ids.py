"""Names: experiment IDs, and what experiments and tasks may be called."""

from __future__ import annotations

import re
import secrets
import string

from nemorun.errors import ConfigError

_LETTERS = string.ascii_lowercase
_BASE32 = _LETTERS + "234567"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def new_id() -> str:
    """8 characters of lower-case base32, the first a letter: 2^39 of them, and never read as a number."""
    return secrets.choice(_LETTERS) + "".join(secrets.choice(_BASE32) for _ in range(7))


def check_name(what: str, name: str) -> str:
    """The name, if files and jobs can be called so. Raises ConfigError."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{what} cannot be called {name!r}: a name has up to 100 letters, digits, '-', '_' and '.', "
            "and begins with a letter or a digit"
        )
    return name


def to_name(text: str) -> str:
    """The nearest allowed name, for names that nobody chose: of functions, files and commands."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:100] or "task"
