"""A configuration to be looked at: the rows of its tree, and what two of them differ in."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from nemorun.config.buildable import Buildable, peek, stored
from nemorun.config.signature import MISSING, signature, type_of, type_text


class Row(NamedTuple):
    """One argument in the tree."""

    path: str
    value: Any
    """MISSING where it is required and not set; the rows of a configuration's own arguments follow it."""
    type: str
    doc: str
    is_default: bool


class Difference(NamedTuple):
    """One place where two configurations differ; MISSING where one of them has nothing."""

    path: str
    left: Any
    right: Any


def tree(value: Any) -> list[Row]:
    """Every argument with its value or default, depth first, in the order of the signatures."""
    return list(_rows(stored(value), ""))


def _rows(value: Any, path: str) -> Iterator[Row]:
    if isinstance(value, Buildable):
        target = value.__fn_or_cls__
        docs = field_docs(target)
        for name in {**signature(target).parameters, **value.__arguments__}:
            place = f"{path}.{name}" if path else name
            inner = peek(value, name)
            is_default = name not in value.__arguments__
            yield Row(place, inner, type_text(type_of(target, name)), docs.get(name, ""), is_default)
            yield from _rows(inner, place)
    elif isinstance(value, (list, tuple, dict)):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(one, Buildable):
                place = f"{path}[{key!r}]"
                yield Row(place, one, type_text(one.__fn_or_cls__), "", False)
                yield from _rows(one, place)


@cache
def field_docs(target: Callable[..., Any]) -> Mapping[str, str]:
    """Argument name -> its doc: the text under a dataclass's field, else the docstring's `Args:`."""
    if not dataclasses.is_dataclass(target):
        return _args_section(inspect.getdoc(target) or "")
    result: dict[str, str] = {}
    for owner in reversed(inspect.getmro(target)):
        if dataclasses.is_dataclass(owner):
            result.update(_texts_under_fields(owner))
    return result


def _texts_under_fields(owner: Any) -> Iterator[tuple[str, str]]:
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
    except (OSError, TypeError, SyntaxError):  # made at run time, or at the prompt
        return
    statements = getattr(body, "body", [])
    for field, text in itertools.pairwise(statements):
        named = isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if named and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            yield field.target.id, " ".join(str(text.value.value).split())


def _args_section(doc: str) -> dict[str, str]:
    """The names of a Google-style `Args:` section and what it says of them."""
    section = re.search(r"^(?:Args|Arguments):\n((?:[ \t]+.*\n?|\n)+)", doc, re.MULTILINE)
    if not section:
        return {}
    result: dict[str, str] = {}
    name = ""
    lines = textwrap.dedent(section[1]).splitlines()
    for line in lines:
        if found := re.match(r"(\w+)(?: \([^)]*\))?: *(.*)", line):
            name = found[1]
            result[name] = found[2]
        elif name and line.strip():
            result[name] = f"{result[name]} {line.strip()}".strip()
    return result


def diff(left: Any, right: Any) -> list[Difference]:
    """Where two configurations differ; a default counts as its value written out; 1 is not True or 1.0."""
    return list(_differences(stored(left), stored(right), ""))


def _differences(left: Any, right: Any, path: str) -> Iterator[Difference]:
    if isinstance(left, Buildable) and isinstance(right, Buildable):
        if type(left) is type(right) and left.__fn_or_cls__ == right.__fn_or_cls__:
            names = {**signature(left.__fn_or_cls__).parameters, **left.__arguments__, **right.__arguments__}
            for name in names:
                yield from _differences(
                    peek(left, name), peek(right, name), f"{path}.{name}" if path else name
                )
            return
    elif type(left) is type(right) and isinstance(left, (list, tuple)):
        for index in range(max(len(left), len(right))):
            ours, theirs = ((one[index] if index < len(one) else MISSING) for one in (left, right))
            yield from _differences(ours, theirs, f"{path}[{index}]")
        return
    elif isinstance(left, dict) and isinstance(right, dict):
        for key in {**left, **right}:
            yield from _differences(left.get(key, MISSING), right.get(key, MISSING), f"{path}[{key!r}]")
        return
    if type(left) is not type(right) or not (
        left is right or left == right or repr(left) == repr(right) == "nan"
    ):
        yield Difference(path, left, right)
