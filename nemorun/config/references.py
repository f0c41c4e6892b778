"""Names for callables and back: `package.module.name`, or `script:path/to/file.py:name` in a script."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from nemorun.config import packages
from nemorun.config.scripts import load_script, script_path
from nemorun.config.signature import name_of
from nemorun.errors import ConfigError, did_you_mean

SCRIPT = "script:"
#: The file that carries what was defined in a notebook or at the prompt.
INTERACTIVE_FILE = "interactive.py"


class Referrer:
    """Writes names; collects what a reader needs to find the things again."""

    def __init__(self, code_root: Path | None, scripts: MutableMapping[str, str] | None) -> None:
        self.code_root = code_root.resolve() if code_root else None
        self.scripts = scripts
        self.import_roots: list[str] = []
        """Folders below the code root that must be on `sys.path`, e.g. `src`."""
        self._interactive: list[Any] = []

    def refer(self, thing: Callable[..., Any], path: str) -> str:
        """The name of a function or class. Raises ConfigError, starting with `path`, if it has none."""
        module_name, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
        if name is None:
            raise ConfigError(
                f"{path}: {thing!r} cannot be written to a file; use plain data, a function or a class"
            )
        if "<" in name:
            what = "a lambda" if name.endswith("<lambda>") else f"'{name}' of a function's body"
            raise ConfigError(
                f"{path}: {what} cannot be found by name; define it at the top level of a module"
            )
        module = sys.modules.get(module_name or "builtins")
        if module is None or _attribute(module, name) != thing:
            raise ConfigError(
                f"{path}: {thing!r} is not found as '{module_name}.{name}'; give it a name of its own"
            )
        if (script := script_path(module)) is not None:
            return f"{SCRIPT}{self._relative(script)}:{name}"
        if module.__name__ == "__main__" and not module.__spec__:
            return self._interactively(thing, name, path)
        spec = getattr(module, "__spec__", None)
        found_as = spec.name if spec else module.__name__  # the one differs where `python -m` runs it
        self._note_import_root(found_as, getattr(module, "__file__", None))
        return f"{found_as}.{name}"

    def finish(self) -> None:
        """Write the source of what was defined interactively, all in one file."""
        if self._interactive and self.scripts is not None:
            from nemorun.config.source import freeze_source

            self.scripts[INTERACTIVE_FILE] = freeze_source(*self._interactive)

    def _interactively(self, thing: Any, name: str, path: str) -> str:
        if self.scripts is None:
            raise ConfigError(f"{path}: '{name}' was defined interactively, in no file that could be named")
        self._interactive.append(thing)
        return f"{SCRIPT}{INTERACTIVE_FILE}:{name}"

    def _relative(self, file: Path) -> str:
        if self.code_root and file.is_relative_to(self.code_root):
            return file.relative_to(self.code_root).as_posix()
        return str(file)

    def _note_import_root(self, name: str, file: str | None) -> None:
        """Remember the folder on `sys.path` that a module came from, if it lies below the code root."""
        if self.code_root is None or file is None:
            return
        root = Path(file).resolve().parents[name.count(".") + (Path(file).stem == "__init__")]
        if root == self.code_root or not root.is_relative_to(self.code_root) or root.name == "site-packages":
            return
        relative = root.relative_to(self.code_root).as_posix()
        if relative not in self.import_roots:
            self.import_roots.append(relative)


def find(reference: str, base: Path | None = None, code_root: Path | None = None) -> Any:
    """What `Referrer.refer` gave the name to. Relative scripts are looked for in `base`, then in `code_root`.

    Raises ConfigError if there is no such module or name.
    """
    if reference.startswith(SCRIPT):
        file, _, name = reference.removeprefix(SCRIPT).rpartition(":")
        found: Any = load_script(_script_file(file, base, code_root))
        owner, names = file, name.split(".")
    else:
        if code_root and reference.startswith(f"{packages.FOLDER}."):
            packages.workspace_package(code_root)
        found, names = _module_of(reference)
        owner = found.__name__
    return attribute(found, names, owner)


def attribute(thing: Any, names: Sequence[str], owner: str) -> Any:
    """`thing.a.b`. Raises ConfigError with the nearest name; `owner` is what the message calls the thing."""
    for name in names:
        if not hasattr(thing, name):
            raise ConfigError(f"{owner} has no '{name}'{did_you_mean(name, dir(thing)) or '.'}")
        thing = getattr(thing, name)
        owner = name_of(thing)
    return thing


def _script_file(file: str, base: Path | None, code_root: Path | None) -> Path:
    folders = [folder for folder in (base, code_root) if folder] or [Path.cwd()]
    for folder in folders:
        if (folder / file).is_file():
            return folder / file
    raise ConfigError(f"the script '{file}' is not in {' or '.join(map(str, folders))}")


def _module_of(reference: str) -> tuple[ModuleType, list[str]]:
    """The longest importable front part of a dotted name, and the names after it."""
    parts = reference.split(".")
    if not all(part.isidentifier() for part in parts):
        raise ConfigError(f"'{reference}' is not a name like package.module.function")
    for end in range(max(1, len(parts) - 1), 0, -1):
        name = ".".join(parts[:end])
        try:
            return importlib.import_module(name), parts[end:]
        except ModuleNotFoundError as error:
            # Only if this very module is missing: an import that fails within it is the user's to see.
            if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
                raise ConfigError(f"{name} cannot be imported: {error}") from error
    raise ConfigError(f"there is no module '{parts[0]}' to import '{reference}' from")


def _attribute(thing: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        thing = getattr(thing, part, None)
    return thing
