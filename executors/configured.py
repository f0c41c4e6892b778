"""The executors that a workspace's settings name, as Configs that overrides apply to, or built."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from nemorun.errors import ConfigError, DiscoveryError, did_you_mean
from nemorun.executors import executor_class
from nemorun.executors.base import Executor
from nemorun.workspace import SETTINGS_FILE, ExecutorEntry, Workspace, executor_entries, find_workspace

if TYPE_CHECKING:
    from nemorun.config import Config


def executor_config(name: str | None = None, workspace: Workspace | None = None) -> Config[Executor]:
    """The executor of that name, not yet built, so that overrides can be applied to it.

    Without a name: the settings' `default_executor`, else `local`. Raises DiscoveryError for an unknown name,
    and ConfigError for a field that the executor does not have or that has a wrong type.
    """
    from nemorun.config import Config, validate

    workspace = workspace or find_workspace()
    entries = executor_entries(workspace)
    name = name or workspace.settings.default_executor or "local"
    if name not in entries:
        raise DiscoveryError(
            f"there is no executor '{name}'; configured: {', '.join(sorted(entries))} "
            f"(name more under 'executors:' in {workspace.root / SETTINGS_FILE}){did_you_mean(name, entries)}"
        )
    entry = entries[name]
    fields = dict(entry.fields)
    try:
        if "factory" in fields:
            config = _from_factory(fields, entry)
        else:
            config = Config(executor_class(fields.pop("type")), **fields)
        validate(config)
    except (ConfigError, DiscoveryError) as error:
        if entry.origin is None:
            raise
        raise type(error)(f"{entry.origin}: executors.{name}: {error}") from None
    return config


def _from_factory(fields: dict[str, Any], entry: ExecutorEntry) -> Config[Executor]:
    """Call `factory: file.py:name` (seen from the settings file) with the other keys as arguments."""
    from nemorun.config import Config, find

    target = fields.pop("factory")
    if entry.origin is not None and ".py" in target:
        target = str(entry.origin.parent / target)
    made = find(target).factory(**fields)
    if isinstance(made, Executor):
        return as_config(made)
    if isinstance(made, Config) and isinstance(made.build(), Executor):
        return made
    raise ConfigError(f"'{target}' returned {made!r}; it must return an executor or a Config of one")


def as_config(executor: Executor) -> Config[Executor]:
    """The Config that builds an equal executor: what is written into records."""
    from nemorun.config import Config

    def default(field: dataclasses.Field[Any]) -> object:
        return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()

    fields = [field for field in dataclasses.fields(executor) if field.init]
    values = {field.name: getattr(executor, field.name) for field in fields}
    return Config(type(executor), **{f.name: values[f.name] for f in fields if values[f.name] != default(f)})


def executor(name: str | None = None, workspace: Workspace | None = None) -> Executor:
    """The executor of that name, built."""
    return executor_config(name, workspace).build()
