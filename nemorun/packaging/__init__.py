"""Freezing code: the files of a workspace as they are now, in one archive named by its content."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nemorun.errors import PackagingError
from nemorun.packaging import git
from nemorun.packaging.archive import SUFFIX, outside, pack, unpack
from nemorun.packaging.select import IGNORE_FILE, select
from nemorun.workspace import home

if TYPE_CHECKING:
    from nemorun.workspace import Workspace

__all__ = ["IGNORE_FILE", "SUFFIX", "Frozen", "freeze", "unpack"]


@dataclass(frozen=True)
class Frozen:
    """An archive of code, and where it came from."""

    root: Path
    """The folder that names in the archive are relative to."""
    path: Path
    sha256: str
    size: int
    """Bytes of all files together, before compression."""
    files: int
    git: git.GitStatus | None
    """How the code stood to its last commit, where it is in git."""
    warnings: tuple[str, ...] = ()
    """What the user should know, a sentence each."""


def freeze(workspace: Workspace, targets: Sequence[Path] = (), *, keep: bool = True) -> Frozen | None:
    """Freeze the workspace's code with the files `targets` in it; None where there is no code to freeze.

    Without `keep` the archive's name is found and the archive thrown away (a dry run).
    Raises PackagingError where files are too large together, unreadable, or uncommitted and that is refused.
    """
    root, code = workspace.root, workspace.settings.code
    names = select(workspace, targets)
    state = git.status(root)
    if state and code.uncommitted == "refuse" and (state.dirty or state.untracked):
        raise PackagingError(
            f"{_uncommitted(state)}; the settings say 'code.uncommitted: refuse', so commit it first"
        )
    warnings = [_uncommitted(state)] if state and (state.dirty or state.untracked) else []
    if links := [name for name in names if outside(root, name)]:
        warnings.append(f"links that lead out of {root} are left out of the frozen code: {_few(links)}")
        names = [name for name in names if name not in set(links)]
    if not names:
        return None
    sizes = {name: (root / name).lstat().st_size for name in names if os.path.lexists(root / name)}
    size = sum(sizes.values())
    if size > code.max_size:
        raise PackagingError(_too_large(root, sizes, size, code.max_size))
    path, sha256 = pack(root, names, home() / "code", keep)
    return Frozen(root, path, sha256, size, len(names), state, tuple(warnings))


def _uncommitted(state: git.GitStatus) -> str:
    kinds = {"changed": state.dirty, "untracked": state.untracked}
    parts = [f"{len(names)} {kind} ({_few(names)})" for kind, names in kinds.items() if names]
    commit = f"commit {state.commit[:8]}" if state.commit else "the (missing) first commit"
    return f"the code differs from {commit}: {', '.join(parts)}"


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _too_large(root: Path, sizes: dict[str, int], size: int, limit: int) -> str:
    largest = sorted(sizes, key=lambda name: -sizes[name])[:5]
    listed = ", ".join(f"{name} ({_megabytes(sizes[name])})" for name in largest)
    return (
        f"the code under {root} has {_megabytes(size)} in {len(sizes)} files, more than code.max_size "
        f"({_megabytes(limit)}); the largest: {listed}. Name what is not code in {root / IGNORE_FILE} "
        f"or under 'code.exclude' in nemorun.yaml, or raise 'code.max_size' there"
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
