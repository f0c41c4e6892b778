"""Where an experiment came from: code, versions, machine, command line."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nemorun
from nemorun.packaging import git

#: The last part of a name that is likely to hold a secret.
_SECRET = re.compile(
    r"(?:^|[^a-z0-9])(?:token|secret|password|passwd|passphrase|credentials?|(?:api|access|secret|private)_?key)$",
    re.IGNORECASE,
)


def looks_secret(name: str) -> bool:
    """Is this the name of something that must not be written down, such as HF_TOKEN?"""
    return bool(_SECRET.search(name))


def get_git_commit(path: str | Path = ".") -> str | None:
    """The full hash of the commit that is checked out around `path`; None where there is none."""
    state = git.status(Path(path).resolve())
    return state.commit if state else None


def facts() -> dict[str, Any]:
    """This process, as plain data for the record."""
    return {
        "command": [redacted(word) for word in sys.orig_argv],
        "cwd": str(Path.cwd()),
        "host": platform.node(),
        "user": os.environ.get("USER") or str(os.getuid()),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_version()} ({sys.executable})",
        "versions": {"nemorun": nemorun.__version__, **_installed("torch", "numpy", "transformers")},
    }


def git_facts(state: git.GitStatus | None) -> dict[str, Any] | None:
    """A git status as plain data."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(state).items()} if state else None


def redacted(word: str) -> str:
    """A word of a command line, such as `HF_TOKEN=x` or `--env=HF_TOKEN=x`, without a secret's value."""
    parts = word.split("=")
    for count, name in enumerate(parts[:-1], start=1):
        if looks_secret(name):
            return "=".join([*parts[:count], "***"])
    return word


def _installed(*names: str) -> dict[str, str]:
    """Versions of what is installed, read from folder names: importlib.metadata alone takes 30 ms."""
    found = {}
    for name in names:
        for folder in sys.path:
            if match := next(Path(folder or ".").glob(f"{name}-*.dist-info"), None):
                found[name] = match.name.removeprefix(f"{name}-").removesuffix(".dist-info")
                break
    return found
