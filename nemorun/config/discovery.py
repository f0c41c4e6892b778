"""Finds factories by name: bundled, of the workspace, of installed packages, in a file, by a dotted path."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from nemorun.config import packages, references
from nemorun.config.factories import factory_name
from nemorun.config.scripts import load_script
from nemorun.config.signature import signature, type_of, type_text
from nemorun.errors import ConfigError, DiscoveryError, did_you_mean

ENTRY_POINTS = "nemorun.recipes"
_FILE = re.compile(r"(.+\.py)(?::([\w.]+))?", re.DOTALL)


@dataclass(frozen=True)
class Found:
    """What a name stands for."""

    factory: Callable[..., Any]
    """The factory, or the plain function or class."""
    kind: str
    """`factory`, `function` or `class`."""
    origin: Path | None
    """The file it is written in; None for what is built into Python."""


@dataclass(frozen=True)
class Recipe:
    """One line of a list of recipes."""

    name: str
    doc: str
    """The first line of its documentation."""
    parameters: tuple[str, ...]
    """Each as it is written in Python: `seq_length: int = 8192`."""
    origin: Path | None


def find(name: str, workspace_root: Path | None = None) -> Found:
    """The factory, function or class of this name.

    `llama3_8b` is looked for among the recipes, `path/to/file.py:name` in a file (the name may be left out
    where the file holds one factory), `package.module.name` or `package.module:name` in a module.
    Raises DiscoveryError if there is none (with the nearest names) or more than one (naming the files).
    """
    if file := _FILE.fullmatch(name):
        return _in_file(_file(file[1], workspace_root), file[2], workspace_root)
    if not name.isidentifier():
        return _dotted(name, workspace_root)
    candidates = _recipes(workspace_root)
    found = candidates.get(name, [])
    if len(found) > 1:
        places = " and ".join(_place(one) for one in found)
        raise DiscoveryError(
            f"there are two recipes called '{name}', in {places}: name one as FILE.py:{name}"
        )
    if not found:
        known = ", ".join(sorted(candidates)) or "none"
        hint = did_you_mean(name, candidates) or "."
        raise DiscoveryError(f"there is no recipe '{name}'{hint} There are: {known}; or name a FILE.py:NAME")
    return found[0]


def available(workspace_root: Path | None = None) -> list[Recipe]:
    """Every recipe that can be named without its file, by name; one name may stand there twice."""
    candidates = _recipes(workspace_root)
    return [_recipe(name, one) for name in sorted(candidates) for one in candidates[name]]


def _recipe(name: str, found: Found) -> Recipe:
    doc = inspect.getdoc(found.factory) or ""
    parameters = []
    for one in signature(found.factory).parameters.values():
        hint = type_of(found.factory, one.name)
        kind = "" if hint is Any else f": {type_text(hint)}"
        default = "" if one.required else f" = {one.default()!r}"
        parameters.append(f"{one.name}{kind}{default}")
    return Recipe(name, doc.partition("\n")[0], tuple(parameters), found.origin)


def _recipes(workspace_root: Path | None) -> dict[str, list[Found]]:
    """Name -> the factories of that name, a factory that is reached in two ways counted once."""
    from importlib.metadata import entry_points

    with _loading("the bundled recipes"):
        modules = packages.modules_of(packages.bundled_package())
    if workspace_root is not None:
        with _loading(str(workspace_root / packages.FOLDER)):
            package = packages.workspace_package(workspace_root)
            modules += packages.modules_of(package) if package else []
    named = [item for module in modules for item in factories_in(module).items()]
    for entry in entry_points(group=ENTRY_POINTS):
        with _loading(f"the entry point '{entry.name}'"):
            value = entry.load()
        named += factories_in(value).items() if isinstance(value, ModuleType) else [(entry.name, value)]
    result: dict[str, list[Found]] = {}
    for name, factory in named:
        same = result.setdefault(name, [])
        if all(_identity(factory) != _identity(one.factory) for one in same):
            same.append(_found(factory))
    return result


def factories_in(module: ModuleType) -> dict[str, Callable[..., Any]]:
    """The factories that a module defines; those that it only imports are found where they are at home."""
    own = [one for one in vars(module).values() if getattr(one, "__module__", None) == module.__name__]
    return {name: one for one in own if (name := factory_name(one)) is not None}


def _found(thing: Any) -> Found:
    kind = "factory" if factory_name(thing) else "class" if isinstance(thing, type) else "function"
    try:
        file = inspect.getsourcefile(inspect.unwrap(thing))
    except TypeError:  # built into Python
        file = None
    return Found(thing, kind, Path(file).resolve() if file else None)


def _identity(thing: Any) -> Any:
    """Where a function is written, which is the same for every name that its module was imported under."""
    code = getattr(inspect.unwrap(thing), "__code__", None)
    return (Path(code.co_filename).resolve(), code.co_firstlineno) if code else thing


def _place(found: Found) -> str:
    code = getattr(inspect.unwrap(found.factory), "__code__", None)
    return f"{found.origin}:{code.co_firstlineno}" if code else str(found.origin)


def _file(name: str, workspace_root: Path | None) -> Path:
    folders = [Path.cwd(), *([workspace_root] if workspace_root else [])]
    for folder in folders:
        path = folder / Path(name).expanduser()
        if path.is_file():
            return path.resolve()
    raise DiscoveryError(f"there is no file '{name}' in {' or '.join(map(str, dict.fromkeys(folders)))}")


def _in_file(path: Path, name: str | None, workspace_root: Path | None) -> Found:
    with _loading(str(path)):
        try:
            module = _module(path, workspace_root)
        except ImportError as error:
            if "attempted relative import" in str(error) and (package := _package_name(path)):
                raise ImportError(f"{error}; name it as a part of its package, {package}:NAME") from error
            raise
    factories = factories_in(module)
    if name is None:
        if len(factories) == 1:
            return _found(*factories.values())
        names = ", ".join(factories) or "none"
        raise DiscoveryError(
            f"{path} holds {len(factories)} factories ({names}): name one as {path.name}:NAME"
        )
    if name in factories:
        return _found(factories[name])
    try:
        thing = references.attribute(module, name.split("."), str(path))
    except ConfigError as error:
        raise DiscoveryError(f"{error} Its factories: {', '.join(factories) or 'none'}") from error
    return _callable(thing, f"{path}:{name}")


def _module(path: Path, workspace_root: Path | None) -> ModuleType:
    """The file's module; what is imported already, or belongs to a package of recipes, is not made twice."""
    own = packages.workspace_package(workspace_root) if workspace_root else None
    for package in (packages.bundled_package(), own):
        if package and any(path.is_relative_to(Path(one).resolve()) for one in package.__path__):
            packages.modules_of(package)
    for module in list(sys.modules.values()):
        file = getattr(module, "__dict__", {}).get("__file__") or ""
        if file.endswith(path.name) and module.__name__ != "__main__" and Path(file).resolve() == path:
            return module
    return load_script(path)


def _dotted(name: str, workspace_root: Path | None) -> Found:
    if not all(part.isidentifier() for part in re.split("[.:]", name)):
        raise DiscoveryError(f"'{name}' is no name; write RECIPE, FILE.py:NAME or package.module.NAME")
    if workspace_root is not None and str(workspace_root) not in sys.path:
        sys.path.insert(0, str(workspace_root))
    try:
        with _loading(f"'{name}'"):
            thing = references.find(name.replace(":", "."), code_root=workspace_root)
    except ConfigError as error:
        raise DiscoveryError(f"'{name}' was not found: {error}") from error
    return _callable(thing, name)


def _callable(thing: Any, name: str) -> Found:
    if not callable(thing):
        raise DiscoveryError(f"'{name}' is {thing!r}; a factory, a function or a class is needed")
    return _found(thing)


def _package_name(path: Path) -> str:
    """`package.module` of a file in a package; empty for a file in none."""
    parts = [path.stem]
    while (path := path.parent) != path.parent and (path / "__init__.py").is_file():
        parts.insert(0, path.name)
    return ".".join(parts) if len(parts) > 1 else ""


@contextmanager
def _loading(what: str) -> Iterator[None]:
    """What is printed meanwhile goes to stderr: stdout is for what was asked."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except (ImportError, SyntaxError) as error:
        raise DiscoveryError(f"{what} cannot be loaded: {type(error).__name__}: {error}") from error
