"""The short form of volumes: `pvc:training-data:/data`, with `:ro` behind it to forbid writing."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from nemorun.errors import ConfigError, did_you_mean
from nemorun.executors.kubernetes.names import slug

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_PATH = re.compile(r"/[^:\0\n]*")
_SIZE = re.compile(r"\d+(\.\d+)?([kMGTPE]i?)?")
#: Where nemorun mounts what it needs itself.
RESERVED = ("/nemorun", "/dev/shm")


@dataclass(frozen=True)
class Mount:
    source: dict[str, Any]
    """What stands in a pod's `volumes`, but for the name."""
    path: str
    read_only: bool


@dataclass(frozen=True)
class _Kind:
    form: str
    words: tuple[tuple[re.Pattern[str], str], ...]
    """Of each word between the kind and the folder in the pod: what it looks like, and what it is."""
    source: Callable[..., dict[str, Any]]


_A_NAME, _A_PATH = (_NAME, "the name of an object"), (_PATH, "a full path")
_KINDS = {
    "pvc": _Kind(
        "pvc:CLAIM:/path[:ro]", (_A_NAME,), lambda claim: {"persistentVolumeClaim": {"claimName": claim}}
    ),
    "hostpath": _Kind("hostpath:/host:/path[:ro]", (_A_PATH,), lambda path: {"hostPath": {"path": path}}),
    "emptydir": _Kind("emptydir:/path[:SIZE]", (), lambda: {"emptyDir": {}}),
    "configmap": _Kind("configmap:NAME:/path", (_A_NAME,), lambda name: {"configMap": {"name": name}}),
    "secret": _Kind("secret:NAME:/path", (_A_NAME,), lambda name: {"secret": {"secretName": name}}),
    "nfs": _Kind(
        "nfs:SERVER:/export:/path[:ro]",
        ((re.compile(r"[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\]"), "a host"), _A_PATH),
        lambda server, path: {"nfs": {"server": server.strip("[]"), "path": path}},
    ),
}
_FORMS = ", ".join(kind.form for kind in _KINDS.values())


def parse(texts: Sequence[str]) -> list[Mount]:
    """Raises ConfigError for what is none, and for two at the same place."""
    mounts = [_mount(text) for text in texts]
    seen: set[str] = set()
    for text, mount in zip(texts, mounts, strict=True):
        if mount.path in seen:
            raise ConfigError(f"volumes: {text!r}: there is another one at {mount.path}")
        seen.add(mount.path)
    return mounts


def claims(texts: Sequence[str]) -> list[str]:
    """Names of the PersistentVolumeClaims among the volumes."""
    sources = (mount.source.get("persistentVolumeClaim", {}) for mount in parse(texts))
    return [source["claimName"] for source in sources if source]


def _mount(text: object) -> Mount:
    kind_name, _, rest = text.partition(":") if isinstance(text, str) else ("", "", "")
    kind = _KINDS.get(kind_name)
    if kind is None:
        raise ConfigError(f"volumes: {text!r} is no volume; write {_FORMS}{did_you_mean(kind_name, _KINDS)}")
    words = re.findall(r"\[[^\]]*\]|[^:]+|(?<=:)(?=:)", rest)
    wanted = len(kind.words)
    option = words.pop() if len(words) == wanted + 2 else ""
    if len(words) != wanted + 1:
        raise ConfigError(f"volumes: {text!r} has not the form {kind.form}")
    for word, (pattern, what) in zip(words, (*kind.words, _A_PATH), strict=True):
        if not pattern.fullmatch(word):
            raise ConfigError(f"volumes: {text!r}: {word!r} is not {what}; the form is {kind.form}")
    path = str(PurePosixPath(words[-1]))
    for reserved in RESERVED:
        if path == "/" or PurePosixPath(path).is_relative_to(reserved):
            raise ConfigError(f"volumes: {text!r}: nothing can be mounted at {path}")
    source = kind.source(*words[:-1])
    if kind_name == "emptydir" and _SIZE.fullmatch(option):
        source = {"emptyDir": {"sizeLimit": option}}
    elif option not in ("", "ro", "rw"):
        raise ConfigError(f"volumes: {text!r}: {option!r} is no option; the form is {kind.form}")
    return Mount(source, path, option == "ro" or kind_name in ("configmap", "secret"))


def named(mounts: Sequence[Mount]) -> list[tuple[str, Mount]]:
    """With the names that the volumes have in the pod: the last part of where they are mounted."""
    taken = {"nemorun", "nemorun-files", "nemorun-code", "shm"}
    result = []
    for mount in mounts:
        name = slug(PurePosixPath(mount.path).name, 63)
        if name in taken:
            name = slug(mount.path, 63)
        taken.add(name)
        result.append((name, mount))
    return result


def volume_of(mounts: Sequence[Mount], path: str) -> Mount | None:
    """The volume that a path in the pod lies on."""
    inside = [mount for mount in mounts if PurePosixPath(path).is_relative_to(mount.path)]
    return max(inside, key=lambda mount: len(mount.path), default=None)
