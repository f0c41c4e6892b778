"""Configuration: callables with bound arguments; checks, YAML and overrides of them.

Names are loaded at first use: a script that only makes a `Partial` pays neither for YAML nor for pydantic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemorun.lazy import lazily

if TYPE_CHECKING:
    from nemorun.config.buildable import Buildable, Config, Partial
    from nemorun.config.calls import call_factory, resolve
    from nemorun.config.codec import dumps, loads
    from nemorun.config.discovery import Found, Recipe, available, find
    from nemorun.config.factories import factory, is_resumable, notes_of, resources, resources_of, smoke
    from nemorun.config.overrides import Override, apply, expand_sweep, split_override
    from nemorun.config.scripts import LaunchInTask, launching_allowed, load_script
    from nemorun.config.signature import MISSING
    from nemorun.config.source import freeze_source
    from nemorun.config.validation import validate
    from nemorun.config.views import Difference, Row, diff, tree

__all__ = [
    "MISSING",
    "Buildable",
    "Config",
    "Difference",
    "Found",
    "LaunchInTask",
    "Override",
    "Partial",
    "Recipe",
    "Row",
    "apply",
    "available",
    "call_factory",
    "diff",
    "dumps",
    "expand_sweep",
    "factory",
    "find",
    "freeze_source",
    "is_resumable",
    "launching_allowed",
    "load_script",
    "loads",
    "notes_of",
    "resolve",
    "resources",
    "resources_of",
    "smoke",
    "split_override",
    "tree",
    "validate",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        ".buildable": ("Buildable", "Config", "Partial"),
        ".signature": ("MISSING",),
        ".factories": ("factory", "is_resumable", "notes_of", "resources", "resources_of", "smoke"),
        ".validation": ("validate",),
        ".codec": ("dumps", "loads"),
        ".scripts": ("LaunchInTask", "launching_allowed", "load_script"),
        ".source": ("freeze_source",),
        ".overrides": ("Override", "apply", "expand_sweep", "split_override"),
        ".discovery": ("Found", "Recipe", "available", "find"),
        ".calls": ("call_factory", "resolve"),
        ".views": ("Difference", "Row", "diff", "tree"),
    },
)
