"""`@file.yaml[:section]`: values of a configuration that stand in a file."""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path
from typing import Any

from nemorun.config.buildable import Buildable, Config, check_name, peek
from nemorun.config.signature import MISSING, is_union, name_of, type_of
from nemorun.errors import ConfigError, OverrideError, did_you_mean

_FILE = re.compile(r"@.+\.ya?ml(:[^:]*)?", re.DOTALL)


def looks_like_file(text: str) -> bool:
    return bool(_FILE.fullmatch(text))


def load(reference: str) -> Any:
    """The value in `path[:section.of.it]`. Raises OverrideError if there is no such file or section."""
    from nemorun.config.codec import loads

    file, _, section = (reference, "", "") if Path(reference).is_file() else reference.rpartition(":")
    path = Path(file or reference).expanduser()
    if not path.is_file():
        raise OverrideError(f"there is no file '{path}'")
    try:
        value = loads(path.read_text(encoding="utf-8"), base=path.resolve().parent)
    except (ConfigError, UnicodeDecodeError, OSError) as error:
        raise OverrideError(f"{path}: {error}") from error
    for part in section.split(".") if section else ():
        names = value.__arguments__ if isinstance(value, Buildable) else value
        if not isinstance(names, dict) or part not in names:
            known = [str(name) for name in names] if isinstance(names, dict) else []
            hint = did_you_mean(part, known) or "."
            raise OverrideError(
                f"{path} has no section '{section}'{hint} It has: {', '.join(known) or 'none'}"
            )
        value = names[part]
    return value


def config_class(annotation: Any) -> type | None:
    """The one dataclass that a type asks for, or None."""
    kinds = typing.get_args(annotation) if is_union(annotation) else (annotation,)
    found = [one for one in kinds if isinstance(one, type) and dataclasses.is_dataclass(one)]
    return found[0] if len(found) == 1 else None


def as_config(value: Any, annotation: Any) -> Any:
    """A mapping as a `Config`, where a dataclass is asked for."""
    kind = config_class(annotation)
    if kind is None or not isinstance(value, dict):
        return value
    result: Config[Any] = Config(kind)
    merge(result, value)
    return result


def merge(buildable: Buildable[Any], values: Any) -> None:
    """Set what the mapping names and leave the rest; mappings are merged into nested configurations."""
    if isinstance(values, Buildable):
        if values.__fn_or_cls__ != buildable.__fn_or_cls__:
            theirs, ours = name_of(values.__fn_or_cls__), name_of(buildable.__fn_or_cls__)
            raise OverrideError(f"the file configures {theirs}, not {ours}")
        values = values.__arguments__
    if not isinstance(values, dict):
        raise OverrideError(f"the file holds {values!r} where a mapping of names to values is needed")
    for name, value in values.items():
        check_name(buildable, str(name))
        current = peek(buildable, name)
        if isinstance(current, Buildable) and isinstance(value, dict):
            merge(current, value)
            value = current
        elif current is None or current is MISSING:
            value = as_config(value, type_of(buildable.__fn_or_cls__, name))
        buildable[name] = value
