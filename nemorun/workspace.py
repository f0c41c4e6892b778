"""Where a user works: the workspace's root and its settings; and nemorun's home."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nemorun.errors import ConfigError, did_you_mean

SETTINGS_FILE = "nemorun.yaml"


@dataclass(frozen=True)
class CodeSettings:
    """How code is frozen (`code:` in the settings)."""

    exclude: tuple[str, ...] = ()
    """Patterns of files that are left out, written as in `.gitignore`."""
    max_size: int = 50_000_000
    """Bytes that the frozen files may have together."""
    uncommitted: Literal["include", "refuse"] = "include"
    """What to do with files that differ from the last commit."""


@dataclass(frozen=True)
class ExecutorEntry:
    """One executor of the settings: `type` and fields, or `factory`; `origin` is the file that says so."""

    fields: dict[str, Any]
    origin: Path | None


@dataclass(frozen=True)
class Settings:
    executors: dict[str, ExecutorEntry] = field(default_factory=dict)
    default_executor: str | None = None
    code: CodeSettings = field(default_factory=CodeSettings)


@dataclass(frozen=True)
class Workspace:
    root: Path
    kind: Literal["yaml", "git", "folder"]
    """What makes `root` the root: its nemorun.yaml, its git repository, or nothing but being where we are."""
    settings_path: Path | None
    settings: Settings


def home() -> Path:
    """nemorun's own folder, $NEMORUN_HOME or ~/.nemorun; made if missing, open to its owner only."""
    folder = Path(os.environ.get("NEMORUN_HOME") or _users_home() / ".nemorun").absolute()
    if not folder.is_dir():
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (folder / ".gitignore").write_text("*\n")  # it may stand in a repository; it is never code
        except OSError as error:
            raise ConfigError(
                f"nemorun's home {folder} cannot be made ({error.strerror}); set NEMORUN_HOME"
            ) from None
    return folder


def _users_home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # a container's user, who has no account
        raise ConfigError("you have no home folder; set HOME (or NEMORUN_HOME and XDG_CONFIG_HOME)") from None


def find_workspace(start: Path | None = None) -> Workspace:
    """The workspace around `start` (default: the current folder); its settings stand on top of the user's."""
    try:
        here = (start or Path.cwd()).resolve()
    except FileNotFoundError:
        raise ConfigError("the folder that you are in was deleted; cd to one that exists") from None
    root, kind = _root(here)
    settings_path = root / SETTINGS_FILE if kind == "yaml" else None
    config_home = os.environ.get("XDG_CONFIG_HOME") or _users_home() / ".config"
    settings = _read(Path(config_home) / "nemorun" / SETTINGS_FILE, Settings())
    if settings_path is not None:
        settings = _read(settings_path, settings)
    return Workspace(root, kind, settings_path, settings)


def _root(here: Path) -> tuple[Path, Literal["yaml", "git", "folder"]]:
    folders = [here, *here.parents]
    for folder in folders:
        if (folder / SETTINGS_FILE).is_file():
            return folder, "yaml"
    for folder in folders:
        if (folder / ".git").exists():
            return folder, "git"
    return here, "folder"


def _read(path: Path, base: Settings) -> Settings:
    """The settings of one file on top of `base`: its executors and values win."""
    if not path.is_file():
        return base
    import yaml

    try:
        found = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    values = _mapping(found, str(path), ("executors", "default_executor", "code"))
    executors = dict(base.executors)
    for name, fields in _mapping(values.get("executors"), f"{path}: executors").items():
        entry = _mapping(fields, f"{path}: executors.{name}")
        if ("type" in entry) == ("factory" in entry):
            raise ConfigError(
                f"{path}: executors.{name} needs either 'type' (such as local) or 'factory' (file.py:name)"
            )
        executors[name] = ExecutorEntry(entry, path)
    default = values.get("default_executor", base.default_executor)
    if default is not None and not isinstance(default, str):
        raise ConfigError(f"{path}: default_executor is {default!r}; it must be the name of an executor")
    return Settings(executors, default, _code(values.get("code"), path, base.code))


def _code(found: object, path: Path, base: CodeSettings) -> CodeSettings:
    values = _mapping(found, f"{path}: code", ("exclude", "max_size", "uncommitted"))
    exclude = values.get("exclude", list(base.exclude))
    if not isinstance(exclude, list) or not all(isinstance(pattern, str) for pattern in exclude):
        raise ConfigError(
            f"{path}: code.exclude is {exclude!r}; it must be a list, such as ['data/', '*.bin']"
        )
    uncommitted = values.get("uncommitted", base.uncommitted)
    if uncommitted not in ("include", "refuse"):
        raise ConfigError(f"{path}: code.uncommitted is {uncommitted!r}; it must be 'include' or 'refuse'")
    size = _bytes(values["max_size"], path) if "max_size" in values else base.max_size
    return CodeSettings(tuple(exclude), size, uncommitted)


def _bytes(value: object, path: Path) -> int:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMG]?)B?\s*", str(value), re.IGNORECASE)
    if isinstance(value, bool) or not match:
        raise ConfigError(f"{path}: code.max_size is {value!r}; write a number of bytes, or such as 50MB")
    return int(float(match[1]) * {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}[match[2].lower()])


def _mapping(value: object, where: str, allowed: tuple[str, ...] | None = None) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{where} is {value!r}; it must be a mapping of names to values")
    for key in value:
        if allowed is not None and key not in allowed:
            known = ", ".join(allowed) + did_you_mean(key, allowed)
            raise ConfigError(f"{where}: unknown key '{key}'; known: {known}")
    return value


def executor_entries(workspace: Workspace) -> dict[str, ExecutorEntry]:
    """Every executor that can be named here; a plain one of each type always exists, and `k8s` for short."""
    types = {name: name for name in ("local", "slurm", "kubernetes")} | {"k8s": "kubernetes"}
    built_in = {name: ExecutorEntry({"type": type_}, None) for name, type_ in types.items()}
    return {**built_in, **workspace.settings.executors}
