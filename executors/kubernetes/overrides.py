"""Strategic merge, as `kubectl patch` does it with a pod: lists of named things are merged by their names."""

from __future__ import annotations

import copy
from typing import Any

from nemorun.errors import ConfigError

#: List -> the key that its entries are told apart by. All other lists are replaced as a whole.
MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "env": "name",
    "ports": "containerPort",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "volumes": "name",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
    "schedulingGates": "name",
}
_PATCH = "$patch"
#: Of an entry, all but one of these goes when another one comes: a volume is of one kind.
_KEEP_ONE = "volumes"


def merge(base: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """The patch on top; None deletes a key, `$patch: delete` an entry, `$patch: replace` all the rest."""
    if patch.get(_PATCH) == "replace":
        return merge({}, {key: value for key, value in patch.items() if key != _PATCH})
    result = dict(base)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            found = result.get(key)
            result[key] = merge(found if isinstance(found, dict) else {}, value)
        elif isinstance(value, list) and key in MERGE_KEYS:
            result[key] = _merge_list(key, result.get(key) or [], value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def _merge_list(name: str, base: list[Any], patch: list[Any]) -> list[Any]:
    key = MERGE_KEYS[name]
    if any(entry == {_PATCH: "replace"} for entry in patch):
        return [_plain(entry) for entry in patch if entry != {_PATCH: "replace"}]
    result = list(base)
    for entry in patch:
        place = next((at for at, one in enumerate(result) if one.get(key) == entry[key]), None)
        if entry.get(_PATCH) == "delete":
            result = [one for one in result if one.get(key) != entry[key]]
        elif place is None:
            result.append(_plain(entry))
        elif name == _KEEP_ONE and entry.keys() - result[place].keys():
            result[place] = _plain(entry)
        else:
            result[place] = merge(result[place], entry)
    return result


def _plain(value: Any) -> Any:
    """Without what deletes: there is nothing to delete."""
    return merge({}, value) if isinstance(value, dict) else copy.deepcopy(value)


def check(patch: Any, where: str) -> None:
    """Raises ConfigError for what cannot be merged, by its place."""
    if isinstance(patch, dict):
        for key, value in patch.items():
            if not isinstance(key, str):
                raise ConfigError(f"{where}: the key {key!r} is not text")
            if key == _PATCH:
                if value not in ("replace", "delete"):
                    raise ConfigError(f"{where}.{key}: {value!r} is neither 'replace' nor 'delete'")
            elif key.startswith("$"):
                raise ConfigError(f"{where}.{key}: of the directives of kubectl, only {_PATCH} is known")
            elif key in MERGE_KEYS and value is not None:
                _check_list(value, f"{where}.{key}", MERGE_KEYS[key])
            else:
                check(value, f"{where}.{key}")
    elif isinstance(patch, list):
        for number, value in enumerate(patch):
            check(value, f"{where}[{number}]")
    elif not isinstance(patch, str | int | float | bool | None) or patch != patch:
        raise ConfigError(
            f"{where}: {patch!r} is not plain data (text, number, True, False, None, list, mapping)"
        )


def _check_list(value: Any, where: str, key: str) -> None:
    if not isinstance(value, list):
        raise ConfigError(f"{where}: {value!r} is not a list")
    for number, entry in enumerate(value):
        if not isinstance(entry, dict) or (key not in entry and entry != {_PATCH: "replace"}):
            raise ConfigError(f"{where}[{number}]: {entry!r} has no {key!r}, which it is merged by")
        check(entry, f"{where}[{number}]")
