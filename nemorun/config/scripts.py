"""Loads a script for its definitions, without running its launch code again.

A script that launches at its top level (no `if __name__ == "__main__"`) is loaded once more by the task
that it launched. While it is, launching raises `LaunchInTask`; the loader executes the script statement by
statement, skips the one that launches, and from there on executes only imports and definitions.
"""

from __future__ import annotations
import __future__

import ast
import json
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

#: JSON list: the arguments that the script was started with, for a task that loads it.
ARGV_VARIABLE = "NEMORUN_SCRIPT_ARGV"
SCRIPT_MARK = "__nemorun_script__"

_DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_loading: list[Path] = []


class LaunchInTask(BaseException):
    """Something was launched while a script is being loaded; the loader skips the statement.

    A BaseException, so that a script's own `except Exception` does not take it.
    """


def launching_allowed() -> bool:
    """False while a script is being loaded: launching must raise `LaunchInTask` then."""
    return not _loading


def load_script(path: str | Path) -> ModuleType:
    """The script's module, executed at the first call only. Its `__name__` is not `__main__`.

    A script that is running as `__main__` is not loaded again. What the script raises is passed on.
    """
    path = Path(path).resolve()
    for module in (sys.modules.get("__main__"), sys.modules.get(_module_name(path))):
        if module is not None and script_path(module) == path:
            return module
    source = path.read_bytes()
    tree = ast.parse(source, str(path))
    module = ModuleType(_module_name(path), ast.get_docstring(tree))
    module.__file__ = str(path)
    setattr(module, SCRIPT_MARK, str(path))
    sys.modules[module.__name__] = module
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # as Python does for a script: its neighbours can be imported
    _loading.append(path)
    try:
        with _argv(path):
            _execute(tree, module)
    except BaseException:
        del sys.modules[module.__name__]
        raise
    finally:
        _loading.pop()
    return module


def script_path(module: ModuleType) -> Path | None:
    """The file of a module that is a script (`__main__`, or loaded by `load_script`); None for any other."""
    if module.__name__ == "__main__" and getattr(module, "__spec__", None) is None:
        file = getattr(module, "__file__", None)
    else:
        file = getattr(module, SCRIPT_MARK, None)
    return Path(file).resolve() if file and Path(file).is_file() else None  # it may be called <stdin>


def _module_name(path: Path) -> str:
    return f"nemorun_script_{path.stem}_{zlib.crc32(os.fsencode(path)):08x}"


def _execute(tree: ast.Module, module: ModuleType) -> None:
    flags = 0
    launched = False
    for statement in tree.body:
        if launched and not isinstance(statement, _DEFINITIONS):
            continue
        if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
            for alias in statement.names:
                flags |= getattr(__future__, alias.name).compiler_flag
        one = ast.Module([statement], type_ignores=[])
        code: Any = compile(one, str(module.__file__), "exec", flags=flags, dont_inherit=True)
        try:
            exec(code, vars(module))
        except LaunchInTask:
            launched = True


@contextmanager
def _argv(path: Path) -> Iterator[None]:
    """The script sees its own arguments; in a task they stay, in a launcher its own come back."""
    before, given = sys.argv, os.environ.get(ARGV_VARIABLE)
    sys.argv = [str(path), *(json.loads(given) if given else ())]
    try:
        yield
    finally:
        if given is None:
            sys.argv = before
