"""What git knows about a folder: commit, branch, what differs, and which files are its own."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from nemorun.errors import PackagingError

#: Kind of a line of `git status --porcelain=v2` -> columns before its path: a change, a rename, a conflict.
_COLUMNS = {"1": 7, "2": 8, "u": 9}
_OF_A_HOOK = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")


@dataclass(frozen=True)
class GitStatus:
    commit: str | None
    """Full hash, or None before the first commit."""
    branch: str | None
    """None where HEAD is detached."""
    dirty: tuple[str, ...] = ()
    """Tracked files that differ from the commit, relative to the repository's top."""
    untracked: tuple[str, ...] = ()


def toplevel(folder: Path) -> Path | None:
    """The top of the work tree around `folder`, found without running git."""
    return next((parent for parent in (folder, *folder.parents) if (parent / ".git").exists()), None)


def status(folder: Path) -> GitStatus | None:
    """How `folder` differs from the last commit, or None where there is no repository around it."""
    if toplevel(folder) is None:
        return None
    commit = branch = None
    dirty, untracked = [], []
    answer = _git(folder, "status", "--porcelain=v2", "--branch", "-z", "--untracked-files=all", "--", ".")
    lines = iter(answer.split("\0"))
    for line in lines:
        kind, _, rest = line.partition(" ")
        if line.startswith("# branch.oid ") and not line.endswith("(initial)"):
            commit = rest.split()[1]
        elif line.startswith("# branch.head ") and not line.endswith("(detached)"):
            branch = rest.split(" ", 1)[1]
        elif kind == "?":
            untracked.append(rest)
        elif kind in _COLUMNS:
            dirty.append(rest.split(" ", _COLUMNS[kind])[-1])
            if kind == "2":
                next(lines)  # the old path
    return GitStatus(commit, branch, tuple(dirty), tuple(untracked))


def files(folder: Path) -> list[str]:
    """The files under `folder`, relative to it: tracked or untracked, not ignored; submodules' too."""
    found = []
    listed = _git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in set(listed.split("\0")) - {""}:
        path = folder / name
        if path.is_dir() and not path.is_symlink():  # a submodule, or another repository inside this one
            if (path / ".git").exists():
                found += [os.path.join(name, inner) for inner in files(path)]  # noqa: PTH118 - names, not paths
        elif path.is_symlink() or path.is_file():
            found.append(name)
    return sorted(found)


def diff(folder: Path) -> str:
    """Everything that differs from the last commit under `folder`, as a patch."""
    return _git(folder, "diff", "HEAD", "--no-color", "--no-ext-diff", "--binary", "--", ".")


def _git(folder: Path, *args: str) -> str:
    """What git prints there; without locks, so that it is never in the way of a git that a person runs."""
    # A hook's git says which repository it runs for; that is not for us.
    env = {name: value for name, value in os.environ.items() if name not in _OF_A_HOOK}
    env |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, env=env, check=False)
    except FileNotFoundError:
        raise PackagingError(
            f"{folder} is in a git repository, but there is no git on PATH; install it"
        ) from None
    if done.returncode:
        raise PackagingError(f"git could not read {folder}: {done.stderr.decode(errors='replace').strip()}")
    return os.fsdecode(done.stdout)
