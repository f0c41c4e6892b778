"""Configuration: callables with bound arguments; checks, YAML and overrides of them.

Names are loaded at first use: a script that only makes a `Partial` pays neither for YAML nor for pydantic.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_MODULES = {
    "buildable": ("Buildable", "Config", "Partial"),
    "signature": ("MISSING",),
    "factories": ("factory", "resources", "resources_of"),
    "validation": ("validate",),
    "codec": ("dumps", "loads"),
    "scripts": ("LaunchInTask", "launching_allowed", "load_script"),
    "source": ("freeze_source",),
    "overrides": ("Override", "apply", "expand_sweep", "split_override"),
    "discovery": ("Found", "Recipe", "available", "find"),
    "calls": ("call_factory", "resolve"),
    "views": ("Difference", "Row", "diff", "tree"),
}
_HOME = {name: f"nemorun.config.{module}" for module, names in _MODULES.items() for name in names}
__all__ = list(_HOME)

if TYPE_CHECKING:
    from nemorun.config.buildable import Buildable as Buildable
    from nemorun.config.buildable import Config as Config
    from nemorun.config.buildable import Partial as Partial
    from nemorun.config.calls import call_factory as call_factory
    from nemorun.config.calls import resolve as resolve
    from nemorun.config.codec import dumps as dumps
    from nemorun.config.codec import loads as loads
    from nemorun.config.discovery import Found as Found
    from nemorun.config.discovery import Recipe as Recipe
    from nemorun.config.discovery import available as available
    from nemorun.config.discovery import find as find
    from nemorun.config.factories import factory as factory
    from nemorun.config.factories import resources as resources
    from nemorun.config.factories import resources_of as resources_of
    from nemorun.config.overrides import Override as Override
    from nemorun.config.overrides import apply as apply
    from nemorun.config.overrides import expand_sweep as expand_sweep
    from nemorun.config.overrides import split_override as split_override
    from nemorun.config.scripts import LaunchInTask as LaunchInTask
    from nemorun.config.scripts import launching_allowed as launching_allowed
    from nemorun.config.scripts import load_script as load_script
    from nemorun.config.signature import MISSING as MISSING
    from nemorun.config.source import freeze_source as freeze_source
    from nemorun.config.validation import validate as validate
    from nemorun.config.views import Difference as Difference
    from nemorun.config.views import Row as Row
    from nemorun.config.views import diff as diff
    from nemorun.config.views import tree as tree


def _bind(name: str) -> Any:
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'nemorun.config' has no attribute {name!r}")
    return _bind(name)


def __dir__() -> list[str]:
    return sorted(__all__)
