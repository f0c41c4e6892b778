"""Which files of a workspace are its code."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemorun.packaging import git

if TYPE_CHECKING:
    from nemorun.workspace import Workspace

IGNORE_FILE = ".nemorunignore"
#: Never code, where git cannot tell.
_NOT_CODE = [".git/", ".hg/", ".svn/", ".venv/", "venv/", ".tox/", ".nox/", "node_modules/", "*.egg-info/"]
_NOT_CODE += ["__pycache__/", "*.pyc", ".*_cache/", ".hypothesis/", ".ipynb_checkpoints/", ".DS_Store"]
#: A folder that holds one of these is a virtual environment or the record of an experiment.
_MARKERS_OF_OTHERS = ("pyvenv.cfg", "experiment.yaml")


def select(workspace: Workspace, targets: Iterable[Path]) -> list[str]:
    """The files to freeze, relative to the workspace's root, sorted; `targets` are always among them.

    In git: its files. With a nemorun.yaml: all but what is never code. Else only Python files and packages
    that stand beside the targets, for anything may lie in a folder that nobody called a workspace.
    """
    root, code = workspace.root, workspace.settings.code
    patterns = list(code.exclude)
    if (root / IGNORE_FILE).is_file():
        patterns += (root / IGNORE_FILE).read_text().splitlines()
    wanted = {str(target.relative_to(root)) for target in targets}
    if git.toplevel(root) is not None:
        names = git.files(root)
        if patterns:
            ignored = _spec(patterns)
            names = [name for name in names if not ignored.match_file(name)]
    elif workspace.kind == "yaml":
        names = _walk(root, "", _spec([*_NOT_CODE, *patterns]))
    else:
        names = _beside(root, patterns) if wanted else []
    return sorted(wanted.union(names))


def _spec(patterns: list[str]) -> Any:
    import pathspec  # 25 ms

    return pathspec.GitIgnoreSpec.from_lines(patterns)


def _beside(root: Path, patterns: list[str]) -> list[str]:
    entries = list(os.scandir(root))
    names = [entry.name for entry in entries if entry.name.endswith(".py") and not entry.is_dir()]
    folders = [entry for entry in entries if entry.is_dir()]
    packages = [entry.name for entry in folders if Path(entry.path, "__init__.py").is_file()]
    if packages or patterns:
        ignored = _spec([*_NOT_CODE, *patterns])
        names = [name for name in names if not ignored.match_file(name)]
        for package in packages:
            names += [] if ignored.match_file(f"{package}/") else _walk(root, package, ignored)
    return names


def _walk(root: Path, start: str, ignored: Any) -> list[str]:
    from nemorun.workspace import home

    own = home()
    names: list[str] = []
    for folder, folders, files in os.walk(root / start):
        inside = Path(folder).relative_to(root)
        links = [name for name in folders if Path(folder, name).is_symlink()]
        folders[:] = [
            name
            for name in folders
            if name not in links
            and not ignored.match_file(f"{inside / name}/")
            and Path(folder, name) != own
            and not any(Path(folder, name, marker).exists() for marker in _MARKERS_OF_OTHERS)
        ]
        names += [str(inside / name) for name in files + links if not ignored.match_file(str(inside / name))]
    return names
