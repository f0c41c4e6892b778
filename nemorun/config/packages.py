"""Recipe modules: those of the bundled package, and those of a workspace's `recipes/` folder."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

FOLDER = "recipes"


def bundled_package() -> ModuleType:
    return importlib.import_module("nemorun.recipes")


def workspace_package(root: Path) -> ModuleType | None:
    """The workspace's `recipes/` as the package `recipes`, or None if it has none or it is the bundled one.

    It is put in place by its path, since another folder of that name may come first on `sys.path`, and
    Python prefers any of them that has an `__init__.py`.
    """
    folder = (root / FOLDER).resolve()
    if not folder.is_dir() or _is_folder_of(bundled_package(), folder):
        return None
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    present = sys.modules.get(FOLDER)
    if present is not None and _is_folder_of(present, folder):
        return present
    for name in [one for one in sys.modules if one == FOLDER or one.startswith(f"{FOLDER}.")]:
        del sys.modules[name]  # another workspace's
    file = folder / "__init__.py"
    spec = (
        spec_from_file_location(FOLDER, file) if file.is_file() else ModuleSpec(FOLDER, None, is_package=True)
    )
    assert spec is not None  # the file has a suffix that Python knows
    spec.submodule_search_locations = [str(folder)]
    package = module_from_spec(spec)
    sys.modules[FOLDER] = package
    if spec.loader is not None and file.is_file():
        spec.loader.exec_module(package)
    return package


def modules_of(package: ModuleType) -> list[ModuleType]:
    """Every module of a package, imported under its real name."""
    found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    return [package, *(_imported(one.name) for one in found)]


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:  # it says what is missing, but not to whom
        raise ImportError(f"{error} (in {name})") from error


def _is_folder_of(package: ModuleType, folder: Path) -> bool:
    return any(Path(one).resolve() == folder for one in package.__path__)
