"""Text to value, by the type at its destination."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping, MutableMapping, MutableSequence, Sequence
from collections.abc import Set as AbstractSet
from enum import Enum
from pathlib import PurePath
from typing import Any, Literal

from nemorun.config.buildable import Buildable, Config, Partial, check_name, is_key, stored
from nemorun.config.factories import factory_name
from nemorun.config.overrides import files
from nemorun.config.overrides.grammar import literal, split, split_call, unquoted
from nemorun.config.signature import MISSING, is_union, name_of, signature, type_of, type_text
from nemorun.config.validation import enum_member, fits
from nemorun.errors import ConfigError, DiscoveryError, OverrideError, did_you_mean

Discover = Callable[[str], Callable[..., Any]]

_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
_YES, _NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_LISTS = (list, Sequence, MutableSequence)
_SETS = (set, AbstractSet)
_DICTS = (dict, Mapping, MutableMapping)
#: The order in which a union's types are tried; what is in neither, classes, comes between the two.
_FIRST = (type(None), Literal, Enum, int, float, bool, *_LISTS, tuple, frozenset, *_SETS, *_DICTS)
_LAST = (PurePath, str)


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads values; `discover` finds a factory, class or function by name (raises DiscoveryError)."""

    discover: Discover

    def read(self, text: str, annotation: Any) -> Any:
        """The value that the text stands for. Raises OverrideError that says what is allowed."""
        annotation = getattr(annotation, "__supertype__", annotation)  # NewType
        arguments = typing.get_args(annotation)
        kind = typing.get_origin(annotation) or annotation
        if is_union(annotation):
            return self._union(text, annotation)
        if kind is typing.Annotated:
            return self.read(text, arguments[0])
        if kind is Literal:
            return _choice(text, annotation)
        if not isinstance(kind, type) or kind in (Any, object):
            return self._untyped(text)
        if kind in _SCALARS or issubclass(kind, (Enum, PurePath)):
            return _scalar(text, kind)
        if kind in (*_LISTS, *_SETS, frozenset, tuple):
            return self._items(text, kind, annotation)
        if kind in _DICTS or typing.is_typeddict(kind):
            return self._dict(text, annotation)
        return self._thing(text, annotation)

    def _union(self, text: str, annotation: Any) -> Any:
        complaint = OverrideError(f"{text!r} is not {type_text(annotation)}")
        name, _ = split_call(text) or (text, None)
        for one in typing.get_args(annotation):
            if _rank(one) == len(_FIRST) and name in _subclasses(one):  # that one and no other is meant
                return self.read(text, one)
        for one in sorted(typing.get_args(annotation), key=_rank):
            try:
                return self.read(text, one)
            except (ConfigError, DiscoveryError) as error:
                if _rank(one) == len(_FIRST):  # a class: which names there are is worth knowing
                    complaint = OverrideError(str(error))
        raise complaint

    def _untyped(self, text: str) -> Any:
        """A Python literal, else a list or mapping in YAML's short form, else a factory's call, else text."""
        value = literal(text)
        if value is not MISSING:
            return value
        if text in _WORDS:
            return _WORDS[text]
        if text.startswith("[") and text.endswith("]"):
            return self._items(text, list, list)
        if text.startswith("{") and text.endswith("}"):
            return self._dict(text, dict) if all(":" in one for one in split(text[1:-1])) else text
        if files.looks_like_file(text):
            return files.load(text[1:])
        if split_call(text):
            with contextlib.suppress(DiscoveryError):
                return self._thing(text, Any)
        return text

    def _items(self, text: str, kind: Any, annotation: Any) -> Any:
        brackets = ("{}", "[]", "()") if kind in (*_SETS, frozenset) else ("[]", "()")
        body = text.strip()
        if body[:1] + body[-1:] not in brackets or len(body) < 2:
            raise OverrideError(f"{text!r} is not {type_text(annotation)}: write [a, b]")
        parts, types = split(body[1:-1]), typing.get_args(annotation)
        if kind is tuple and types and types[-1] is not Ellipsis:
            wanted = [] if types == ((),) else types
            if len(wanted) != len(parts):
                raise OverrideError(
                    f"{text!r} has {len(parts)} items; {type_text(annotation)} has {len(wanted)}"
                )
        else:
            wanted = (types or (Any,))[:1] * len(parts)  # one type for all
        values = [self.read(part, one) for part, one in zip(parts, wanted, strict=True)]
        try:
            return {Sequence: list, MutableSequence: list, AbstractSet: set}.get(kind, kind)(values)
        except TypeError as error:
            raise OverrideError(f"{text!r} is not {type_text(annotation)}: {error}") from error

    def _dict(self, text: str, annotation: Any) -> dict[Any, Any]:
        key_type, value_type = typing.get_args(annotation) or (Any, Any)
        fields = typing.get_type_hints(annotation) if typing.is_typeddict(annotation) else {}
        result: dict[Any, Any] = {}
        for key_text, value in _pairs(text, annotation):
            key = self.read(key_text, key_type)
            if not is_key(key):
                raise OverrideError(f"{key_text!r} cannot be a key")
            result[key] = self.read(value, fields.get(key, value_type))
        return result

    def _thing(self, text: str, annotation: Any) -> Any:
        """A configuration, function or class: `@file.yaml`, `{field: value}`, `name`, `name(key=value)`."""
        kind = typing.get_origin(annotation) or annotation
        if text.startswith("@"):
            value = files.load(text[1:])
            return self._fitting(files.as_config(value, annotation), annotation, text)
        if text.startswith("{") and dataclasses.is_dataclass(kind):
            result: Buildable[Any] = Config(typing.cast(Any, kind))
            self.bind(result, [f"{name}={value}" for name, value in _pairs(text, annotation)])
            return result
        name, arguments = split_call(text) or (text, None)
        target = (known := _subclasses(annotation)).get(name) or self._discovered(name, known)
        if factory_name(target):
            call = Partial(target)
            self.bind(call, arguments or [])
            return self._fitting(stored(call()), annotation, text)
        if kind in (type, Callable) and arguments is None:
            return self._fitting(target, annotation, text)
        made: Buildable[Any] = Partial(target) if kind is Callable else Config(target)
        self.bind(made, arguments or [])
        return self._fitting(made, annotation, text)

    def _discovered(self, name: str, known: Iterable[str]) -> Any:
        try:
            return self.discover(name)
        except DiscoveryError as error:
            if known and name.isidentifier():
                hint = did_you_mean(name, known) or "."
                raise OverrideError(f"'{name}' is none of {', '.join(known)}{hint} And {error}") from error
            raise

    def bind(self, call: Buildable[Any], arguments: Sequence[str]) -> None:
        """Bind arguments written as in a call: by position first, then by name."""
        target = call.__fn_or_cls__
        names = list(signature(target).parameters)
        for index, text in enumerate(arguments):
            name, equals, value = text.partition("=")
            if not (equals and name.strip().isidentifier()):
                if index >= len(names):
                    raise OverrideError(f"{name_of(target)} takes {len(names)} arguments, not {text!r} too")
                name, value = names[index], text
            name = name.strip()
            check_name(call, name)
            try:
                call[name] = self.read(value.strip(), type_of(target, name))
            except OverrideError as error:
                raise OverrideError(f"{name_of(target)}: {name}: {error}") from error

    def _fitting(self, value: Any, annotation: Any, text: str) -> Any:
        if annotation is Any:
            return value
        kind = typing.get_origin(annotation) or annotation
        if isinstance(value, Buildable):
            good = fits(value, annotation)
        elif kind is type:
            good = inspect.isclass(value) and all(
                issubclass(value, one) for one in typing.get_args(annotation) if isinstance(one, type)
            )
        else:
            good = isinstance(value, kind)
        if not good:
            raise OverrideError(f"{text!r} gives {value!r}, which is not {type_text(annotation)}")
        return value


_SCALARS = (bool, int, float, str, bytes, complex, type(None))


def _rank(annotation: Any) -> int:
    kind = typing.get_origin(annotation) or annotation
    for index, one in enumerate((*_FIRST, None, *_LAST)):
        if kind is one or (one in (Enum, PurePath) and isinstance(kind, type) and issubclass(kind, one)):
            return index
    return len(_FIRST)


def _scalar(text: str, kind: type) -> Any:
    if kind is str:
        return unquoted(text)
    if issubclass(kind, PurePath):
        return kind(unquoted(text))
    expected = OverrideError(f"{text!r} is not {type_text(kind)}")
    if issubclass(kind, Enum):
        word = unquoted(text).removeprefix(f"{kind.__name__}.")
        member = enum_member(kind, word) or enum_member(kind, literal(word))
        if member is None:
            members = ", ".join(f"{one.name} ({one.value!r})" for one in kind)
            hint = did_you_mean(word, kind.__members__) or ";"
            raise OverrideError(f"{expected}{hint} there are {members}")
        return member
    if kind is type(None) and text in ("None", "null"):
        return None
    if kind is bool and text.lower() in (*_YES, *_NO):
        return text.lower() in _YES
    try:
        if kind is int:
            return _integer(text)
        if kind is float:
            return float(text)
    except (ValueError, OverflowError):
        raise expected from None
    value = literal(text)
    if type(value) is not kind:
        raise expected
    return value


def _integer(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        if "e" in text.lower() and float(text).is_integer():  # 1e6
            return int(float(text))
        raise


def _choice(text: str, annotation: Any) -> Any:
    choices = typing.get_args(annotation)
    for one in choices:
        names = {one.name, str(one.value)} if isinstance(one, Enum) else {str(one)}
        if unquoted(text) in names or (one is None and text == "null"):
            return one
    for one in choices:  # True as `true`, 1000 as `1_000`
        value = _WORDS.get(text, literal(text))
        if type(value) is type(one) and value == one:
            return one
    raise OverrideError(f"{text!r} is not one of {type_text(annotation)}")


def _pairs(text: str, annotation: Any) -> list[tuple[str, str]]:
    """`{a: 1, b: 2}` -> its keys and values, as text."""
    body = text.strip()
    if not (body.startswith("{") and body.endswith("}")) or len(body) < 2:
        raise OverrideError(f"{text!r} is not {type_text(annotation)}: write {{key: value}}")
    result = []
    for item in split(body[1:-1]):
        key = split(item, ":")[0]
        position = item.find(":", len(key))
        if position < 0:
            raise OverrideError(f"{text!r}: {item!r} has no value: write {{key: value}}")
        result.append((key, item[position + 1 :].strip()))
    return result


def _subclasses(annotation: Any) -> dict[str, type]:
    """Name -> class, of the class that is asked for and of those that are derived from it."""
    kind = typing.get_origin(annotation) or annotation
    roots = typing.get_args(annotation) if kind is type else (kind,)
    result: dict[str, type] = {}
    waiting = [one for one in roots if isinstance(one, type) and one not in (object, type, Any)]
    while waiting:
        one = waiting.pop(0)
        if one.__name__ not in result:
            result[one.__name__] = one
            waiting.extend(one.__subclasses__())
    return result
