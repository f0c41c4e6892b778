"""YAML in and out; what is written is what is read again, to the type.

`_target_: package.module.name` is a `Config`, with `_partial_: true` a `Partial`; tags carry what YAML has no
form for. Reading imports the named targets and executes nothing else.
"""

from __future__ import annotations

import operator
import re
import sys
from collections.abc import MutableMapping
from enum import Enum, Flag
from pathlib import Path, PurePath
from typing import Any, ClassVar

import yaml

from nemorun.config.buildable import Buildable, Config, Partial, is_key, stored
from nemorun.config.references import Referrer, find
from nemorun.config.signature import name_of
from nemorun.errors import ConfigError

TARGET, PARTIAL, IMPORT_ROOTS = "_target_", "_partial_", "_path_"
_RESERVED = (TARGET, PARTIAL, IMPORT_ROOTS)

_STR, _SEQ, _MAP = "tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"
_FLOAT, _INT, _BINARY = "tag:yaml.org,2002:float", "tag:yaml.org,2002:int", "tag:yaml.org,2002:binary"
_SEQUENCES: dict[type, str] = {list: _SEQ, tuple: "!tuple", set: "!set", frozenset: "!frozenset"}
_SEQUENCE_OF_TAG = {tag: kind for kind, tag in _SEQUENCES.items()}

_RESOLVERS: list[tuple[str, str, str]] = [
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", "~nN"),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    (_INT, r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        _FLOAT,
        r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
]


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc] # the C one where it was built
    """Numbers and words of YAML 1.2: 1e-4 is a number; `no`, `010`, `12:30:00`, `2024-01-01` are texts."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc] # the C one where it was built
    """Quotes every text that YAML 1.1 or 1.2 would take for something else."""


for _tag, _pattern, _first in _RESOLVERS:
    _compiled = re.compile(rf"^(?:{_pattern})$")
    _Loader.add_implicit_resolver(_tag, _compiled, [*_first, ""] if "null" in _tag else list(_first))
    _Dumper.add_implicit_resolver(_tag, _compiled, list(_first))


def dumps(
    value: Any, *, code_root: Path | None = None, scripts: MutableMapping[str, str] | None = None
) -> str:
    """The value as YAML.

    Paths of scripts are written relative to `code_root` where they lie in it. `scripts` receives the sources
    {file name: source} of what was defined interactively; a reader finds them in its `base`.
    Raises ConfigError, with the dotted path, for a value that cannot be written.
    """
    referrer = Referrer(code_root, scripts)
    node = _Encoder(referrer).node(stored(value), "")
    referrer.finish()
    if referrer.import_roots and isinstance(node, yaml.MappingNode):
        roots = yaml.SequenceNode(_SEQ, [_text(one) for one in referrer.import_roots], flow_style=True)
        node.value.insert(0, (_text(IMPORT_ROOTS), roots))
    text: str = yaml.serialize(node, Dumper=_Dumper, allow_unicode=True, width=110)
    return text.removesuffix("...\n")


def loads(text: str, base: Path | None = None, code_root: Path | None = None) -> Any:
    """The value that `dumps` wrote. Relative paths of scripts are resolved in `base`, then in `code_root`.

    Raises ConfigError, with line and column, for what is not YAML, has a tag that is not ours, or names a
    target that cannot be imported.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
        return None if node is None else _Decoder(base, code_root).value(node)
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {_in_one_line(error)}") from error
    except RecursionError:
        raise ConfigError("not valid YAML: an alias within itself, or brackets too deep to read") from None


def _text(value: str) -> yaml.ScalarNode:
    return yaml.ScalarNode(_STR, value)


class _Encoder:
    def __init__(self, referrer: Referrer) -> None:
        self.referrer = referrer
        self.plain = yaml.representer.SafeRepresenter()

    def node(self, value: Any, path: str) -> yaml.Node:
        kind = type(value)
        if value is None or kind in (bool, int, float, bytes):
            return self.plain.represent_data(value)
        if kind is str:
            return self._string(value)
        if isinstance(value, Buildable):
            return self._buildable(value, path)
        if kind in _SEQUENCES:
            items = [self.node(one, f"{path}[{index}]") for index, one in enumerate(_ordered(value))]
            flow = all(isinstance(one, yaml.ScalarNode) for one in items)
            return yaml.SequenceNode(_SEQUENCES[kind], items, flow_style=flow)
        if kind is dict:
            pairs = [(self.node(key, path), self.node(one, f"{path}[{key!r}]")) for key, one in value.items()]
            tag = "!dict" if any(key in value for key in _RESERVED) else _MAP
            return yaml.MappingNode(tag, pairs, flow_style=not pairs)
        if isinstance(value, Enum):
            return yaml.ScalarNode("!enum", f"{self.referrer.refer(kind, path)}.{_member_name(value)}")
        if isinstance(value, PurePath):
            if kind is not type(Path()):
                raise ConfigError(f"{path}: {value!r} cannot be written to a file; use pathlib.Path")
            return self._string(str(value), "!path")
        if callable(value):
            return yaml.ScalarNode("!fn", self.referrer.refer(value, path))
        raise ConfigError(
            f"{path}: a value of type {kind.__module__}.{kind.__qualname__} cannot be written to a file; "
            f"use plain data, a Path, an Enum, a dataclass, a function or a Config"
        )

    def _string(self, value: str, tag: str = _STR) -> yaml.ScalarNode:
        if not value.isascii() and not value.isprintable():
            # Surrogates (from undecodable file names) and the like have no form that every parser reads.
            escaped = value.encode("unicode_escape").decode("ascii")
            return yaml.ScalarNode("!escaped" if tag == _STR else "!escaped-path", escaped)
        return yaml.ScalarNode(tag, value, style="|" if "\n" in value else None)

    def _buildable(self, value: Buildable[Any], path: str) -> yaml.Node:
        target = value.__fn_or_cls__
        reference = self.referrer.refer(target, path or name_of(target))
        pairs: list[tuple[yaml.Node, yaml.Node]] = [(_text(TARGET), _text(reference))]
        if isinstance(value, Partial):
            pairs.append((_text(PARTIAL), self.plain.represent_data(True)))
        for name, one in value.__arguments__.items():
            if name in _RESERVED:
                raise ConfigError(f"an argument cannot be called '{name}'")
            pairs.append((self._string(name), self.node(one, f"{path}.{name}" if path else name)))
        return yaml.MappingNode(_MAP, pairs, flow_style=False)


def _ordered(value: Any) -> Any:
    """Sets have no order: sorted, so that the same value gives the same text."""
    return sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value


def _member_name(member: Enum) -> str:
    if isinstance(member, Flag) and type(member).__members__.get(member.name or "") is None:
        return "|".join(one.name or "" for one in type(member) if one.value and one in member)
    return str(member.name)


class _Decoder:
    def __init__(self, base: Path | None, code_root: Path | None) -> None:
        self.base, self.code_root = base, code_root
        self.plain = yaml.constructor.SafeConstructor()

    def value(self, node: yaml.Node) -> Any:
        if isinstance(node, yaml.SequenceNode) and node.tag in _SEQUENCE_OF_TAG:
            items = [self.value(one) for one in node.value]
            if "set" in node.tag and not all(map(is_key, items)):
                raise ConfigError(f"{_place(node)}: a list or a mapping cannot be in a set")
            return _SEQUENCE_OF_TAG[node.tag](items)
        if isinstance(node, yaml.MappingNode) and node.tag in (_MAP, "!dict"):
            mapping = self._mapping(node)
            return self._buildable(mapping, node) if node.tag == _MAP and TARGET in mapping else mapping
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        raise ConfigError(f"{_place(node)}: unknown tag {node.tag}")

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        if node.tag == "!path":
            return Path(node.value)
        if node.tag == "!fn":
            found = self._find(node.value, node)
            if not callable(found):
                raise ConfigError(f"{_place(node)}: {node.value} is no function or class")
            return found
        if node.tag == "!enum":
            return self._member(node)
        if node.tag == _STR:
            return node.value
        try:
            if node.tag in ("!escaped", "!escaped-path"):
                text = node.value.encode("ascii").decode("unicode_escape")
                return text if node.tag == "!escaped" else Path(text)
            if node.tag in {_BINARY, *(tag for tag, _, _ in _RESOLVERS)}:
                return self.plain.construct_object(node)
        except (ValueError, yaml.YAMLError) as error:
            raise ConfigError(f"{_place(node)}: {error}") from error
        raise ConfigError(f"{_place(node)}: unknown tag {node.tag}")

    def _member(self, node: yaml.ScalarNode) -> Any:
        reference, _, names = node.value.rpartition(".")
        kind = self._find(reference, node)
        if not (isinstance(kind, type) and issubclass(kind, Enum)):
            raise ConfigError(f"{_place(node)}: {reference} is not an enum")
        try:
            members = [kind[name] for name in names.split("|") if name or not issubclass(kind, Flag)]
        except KeyError as error:
            raise ConfigError(f"{_place(node)}: {reference} has no member {error}") from error
        if issubclass(kind, Flag):
            result = kind(0)
            for member in members:
                result = operator.or_(result, member)
            return result
        return members[0]

    def _mapping(self, node: yaml.MappingNode) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = self.value(key_node)
            if not is_key(key):
                raise ConfigError(f"{_place(key_node)}: {key!r} cannot be a key")
            if key in result:
                raise ConfigError(f"{_place(key_node)}: the key {key!r} stands here twice")
            if key == IMPORT_ROOTS and node.tag == _MAP:
                self._extend_path(self.value(value_node))
            result[key] = self.value(value_node)
        return result

    def _extend_path(self, roots: list[str]) -> None:
        for root in roots if self.code_root else ():
            folder = str(self.code_root / root)  # type: ignore[operator] # not None here
            if folder not in sys.path:
                sys.path.insert(0, folder)

    def _buildable(self, mapping: dict[Any, Any], node: yaml.Node) -> Buildable[Any]:
        target = self._find(str(mapping[TARGET]), node)
        partial = mapping.get(PARTIAL, False)
        if not isinstance(partial, bool):
            raise ConfigError(f"{_place(node)}: {PARTIAL} is {partial!r}; it must be true or false")
        kind = Partial if partial else Config
        try:
            return kind(target, **{str(name): one for name, one in mapping.items() if name not in _RESERVED})
        except ConfigError as error:
            raise ConfigError(f"{_place(node)}: {error}") from error

    def _find(self, reference: str, node: yaml.Node) -> Any:
        try:
            return find(reference, self.base, self.code_root)
        except (ConfigError, SyntaxError) as error:
            raise ConfigError(f"{_place(node)}: {error}") from error


def _place(node: yaml.Node) -> str:
    return _position(node.start_mark)


def _position(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


def _in_one_line(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"{_position(error.problem_mark)}: {error.problem}"
    return " ".join(str(error).split())
