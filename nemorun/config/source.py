"""The source of a module that defines what was written in a notebook or at the prompt.

A function's source is taken together with the globals that it uses: modules become imports, other functions
and classes of the session come along, plain data is written out.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import linecache
import math
import symtable
import sys
import textwrap
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from nemorun.config.signature import name_of
from nemorun.errors import ConfigError

_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def freeze_source(*things: Any) -> str:
    """A module's source that defines these functions and classes.

    Raises ConfigError naming the first global that cannot be carried: an open file, a model, a lambda.
    """
    freezer = _Freezer()
    for thing in things:
        freezer.define(thing)
    blocks = ["\n".join(sorted(freezer.imports)), "\n".join(freezer.data), *freezer.definitions]
    return "\n\n".join(["from __future__ import annotations", *(one for one in blocks if one)]) + "\n"


class _Freezer:
    def __init__(self) -> None:
        self.imports: set[str] = set()
        self.data: list[str] = []
        self.definitions: list[str] = []
        self._seen: set[str] = set()

    def define(self, thing: Any) -> None:
        """Add a definition after everything that it uses."""
        name = name_of(thing)
        if name in self._seen:
            return
        self._seen.add(name)
        source = _source_of(thing)
        namespace = vars(sys.modules[thing.__module__])
        for used in sorted(set(_global_names(symtable.symtable(source, name, "exec")))):
            if used in namespace and used != name:
                self._carry(used, namespace[used], name)
            elif used not in namespace and not hasattr(builtins, used):
                raise ConfigError(f"{name} uses '{used}', which is not defined")
        self.definitions.append(source.rstrip() + "\n")

    def _carry(self, name: str, value: Any, user: str) -> None:
        if name in self._seen:
            return
        if isinstance(value, ModuleType):
            self._seen.add(name)
            self.imports.add(f"import {value.__name__} as {name}")
            return
        own, module = getattr(value, "__qualname__", None), getattr(value, "__module__", None)
        written_here = module == "__main__" and (inspect.isfunction(value) or isinstance(value, type))
        if written_here and own and own.isidentifier():
            self.define(value)
            if own != name:
                self._seen.add(name)
                self.definitions.append(f"{name} = {own}\n")
            return
        self._seen.add(name)
        if own and module and own.isidentifier() and getattr(sys.modules.get(module), own, None) is value:
            self.imports.add(f"from {module} import {own} as {name}")
        elif _is_plain(value):
            self.data.append(f"{name} = {_literal(value)}")
        else:
            raise ConfigError(
                f"{user} uses the global '{name}', a {type(value).__name__}, which no task can be given: "
                f"make it an argument, or write the function into a file"
            )


def _source_of(thing: Any) -> str:
    try:
        return textwrap.dedent(inspect.getsource(thing))
    except (OSError, TypeError):
        # Python looks for a class in its module's file, which a notebook has not: its cells are in the cache.
        for file, entry in reversed(list(linecache.cache.items())):
            if len(entry) == 4 and (text := _class_in_cell(thing, file, entry[2])):
                return text
    raise ConfigError(f"the source of {name_of(thing)} is nowhere to be read: write it into a file")


def _class_in_cell(thing: Any, file: str, lines: list[str]) -> str | None:
    """The text of a class at the top of a notebook's cell or of what was typed at the prompt."""
    if not isinstance(thing, type) or not (file.startswith("<") or "ipykernel" in file):
        return None
    try:
        statements = ast.parse("".join(lines)).body
    except SyntaxError:
        return None
    for statement in statements:
        if isinstance(statement, ast.ClassDef) and statement.name == thing.__name__:
            first = min([statement.lineno, *(one.lineno for one in statement.decorator_list)])
            return "".join(lines[first - 1 : statement.end_lineno])
    return None


def _global_names(table: symtable.SymbolTable) -> Iterator[str]:
    """Names that the source reads from its module."""
    for symbol in table.get_symbols():
        at_top = table.get_type() == "module" and not symbol.is_assigned() and not symbol.is_namespace()
        if symbol.is_referenced() and (symbol.is_global() or at_top):
            yield symbol.get_name()
    for child in table.get_children():
        yield from _global_names(child)


def _is_plain(value: Any) -> bool:
    if type(value) in (list, tuple, set, frozenset):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(_is_plain(key) and _is_plain(one) for key, one in value.items())
    return type(value) in _PLAIN


def _literal(value: Any) -> str:
    """`repr`, but for the floats that have no literal."""
    if type(value) is float and not math.isfinite(value):
        return f"float({str(value)!r})"
    if type(value) is dict:
        return "{" + ", ".join(f"{_literal(key)}: {_literal(one)}" for key, one in value.items()) + "}"
    if type(value) in (list, tuple, set, frozenset):
        items = "".join(f"{_literal(one)}, " for one in value)
        return f"({items})" if type(value) is tuple else f"{type(value).__name__}([{items}])"
    return repr(value)
