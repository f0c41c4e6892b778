"""How an override is cut into its parts; nothing here knows what the parts mean."""

from __future__ import annotations

import ast
import itertools
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nemorun.config.signature import MISSING
from nemorun.errors import OverrideError

_FIRST = re.compile(r"[^\W\d]\w*")
_NEXT = re.compile(r"\.(\w+(?:-\w+)*)")  # also a dictionary's key, as in env.MY-NAME
_ITEM = re.compile(r"""\[('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\[\]]*)\]""", re.DOTALL)
_OPERATOR = re.compile(r"[-+*/|&]?=")
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_CALL = re.compile(r"([^\s()\[\]{}=,'\"]+)\((.*)\)", re.DOTALL)
_OPENING, _CLOSING = "([{", ")]}"


@dataclass(frozen=True)
class Step:
    """One step of a path: `.name` or, with `item`, `[key]`."""

    key: str
    item: bool = False

    def __str__(self) -> str:
        return f"[{self.key}]" if self.item else f".{self.key}"


@dataclass(frozen=True)
class Override:
    """`a.b[0]+=3` in its parts; `@file.yaml` has the operator `@` and no path."""

    text: str
    path: tuple[Step, ...]
    operator: str
    value: str

    @property
    def place(self) -> str:
        return path_text(self.path)


def path_text(path: Sequence[Step]) -> str:
    return "".join(map(str, path)).removeprefix(".")


def split_override(text: str) -> Override:
    """The parts of an override; the value is everything behind the operator. Raises OverrideError."""
    if text.startswith("@"):
        return Override(text, (), "@", text[1:])
    first = _FIRST.match(text)
    steps, end = [], 0
    if first:
        steps, end = [Step(first[0])], first.end()
    while steps:
        if found := _NEXT.match(text, end):
            steps.append(Step(found[1]))
        elif found := _ITEM.match(text, end):
            steps.append(Step(unquoted(found[1]), item=True))
        else:
            break
        end = found.end()
    operator = _OPERATOR.match(text, end)
    if not steps or not operator:
        where = f" (stopped at {text[end:]!r})" if text[end:] else ""
        raise OverrideError(
            f"'{text}' is not an override{where}: write NAME=VALUE, or +=, -=, *=, /=, |=, &= for the "
            f"operator, or @FILE.yaml[:SECTION]"
        )
    return Override(text, tuple(steps), operator[0], text[operator.end() :])


def unquoted(text: str) -> str:
    """The text, without its quotes if all of it is one quoted Python string."""
    if _QUOTED.fullmatch(text):
        value = literal(text)
        return value if isinstance(value, str) else text
    return text


def literal(text: str) -> Any:
    """The value of a Python literal, or MISSING if the text is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # '\d' is text as well as any
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return MISSING


def split(text: str, separator: str = ",") -> list[str]:
    """Cut at separators outside of brackets and quoted strings; `a, b,` gives two parts, stripped."""
    parts, start, depth, position = [], 0, 0, 0
    while position < len(text):
        character = text[position]
        if character in "'\"" and not text[position - 1 : position].isalnum():  # not the one in it's
            if string := _QUOTED.match(text, position):
                position = string.end()
                continue
        elif character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth -= 1
        elif character == separator and depth <= 0:
            parts.append(text[start:position].strip())
            start = position + 1
        position += 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


def split_call(text: str) -> tuple[str, list[str]] | None:
    """`name(a=1, b)` -> name and arguments, or None if the text is no call."""
    call = _CALL.fullmatch(text.strip())
    return (call[1], split(call[2])) if call else None


def expand_sweep(sweeps: Sequence[str]) -> list[list[str]]:
    """`["lr=1e-3,1e-4", "n=1,2"]` -> the overrides of each point of the grid. Raises OverrideError."""
    axes = []
    for text in sweeps:
        sweep = split_override(text)
        values = split(sweep.value)
        if sweep.operator != "=" or not values:
            raise OverrideError(f"'{text}' is not a sweep: write NAME=VALUE,VALUE,…")
        axes.append([f"{sweep.place}={value}" for value in values])
    return [list(point) for point in itertools.product(*axes)]
