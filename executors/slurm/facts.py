"""What the probe said of a cluster, parsed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from nemorun.errors import ConfigError
from nemorun.executors.times import time_limit


@dataclass(frozen=True)
class Partition:
    name: str
    default: bool
    nodes: int
    """All that it has."""
    max_nodes: int | None
    """For one job."""
    max_time: int | None
    """Seconds."""
    accounts: frozenset[str] | None
    """That may use it; None: all but `not_accounts`."""
    not_accounts: frozenset[str]
    qos: frozenset[str] | None
    not_qos: frozenset[str]


@dataclass(frozen=True)
class Nodes:
    """Some equal nodes of a partition."""

    partition: str
    count: int
    cpus: int
    memory: int
    """Megabytes."""
    gpus: Mapping[str, int]
    """Type -> number; the type is empty where none is told."""


@dataclass(frozen=True)
class Association:
    """An account that the user may charge, perhaps in one partition only."""

    account: str
    partition: str
    qos: frozenset[str]
    max_time: int | None


@dataclass(frozen=True)
class Qos:
    max_time: int | None
    flags: frozenset[str]
    """Such as PartitionTimeLimit: jobs may go beyond the partition's."""


@dataclass(frozen=True)
class Facts:
    job_dir: str
    """Resolved."""
    blocked: str | None
    """The folder that cannot be written to, where that is so."""
    free: int | None
    """Bytes."""
    have: frozenset[str]
    """Of what would be sent: paths under job_dir."""
    config: Mapping[str, str]
    partitions: Mapping[str, Partition]
    nodes: tuple[Nodes, ...]
    associations: tuple[Association, ...] | None
    """None where accounting could not be asked."""
    default_account: str
    qos: Mapping[str, Qos]
    python: str | None
    """What `--version` of the interpreter said; empty: it is not there; None: not asked."""
    more: Mapping[str, list[str]]
    """Sections that only `executors check` asks for."""

    @property
    def version(self) -> str:
        return self.config.get("SLURM_VERSION", "of an unknown version")

    @property
    def max_array_size(self) -> int:
        """Elements that one array may have; its highest index is one less."""
        size = int(self.config.get("MaxArraySize", "1001"))
        if limit := re.search(r"\bmax_array_tasks=(\d+)", self.config.get("SchedulerParameters", "")):
            size = min(size, int(limit[1]))
        return size

    def enforces(self, what: str) -> bool:
        """Does accounting refuse, or hold, what breaks these rules: associations, limits, qos?"""
        return what in self.config.get("AccountingStorageEnforce", "").split(",")

    @property
    def default_partition(self) -> str | None:
        return next((one.name for one in self.partitions.values() if one.default), None)


def parse(output: str) -> Facts:
    sections: dict[str, list[str]] = {}
    for line in output.splitlines():
        if line.startswith("=== "):
            lines = sections.setdefault(line[4:], [])
        elif sections:
            lines.append(line)
    job_dir, writable, *free = sections["job_dir"]
    config = _config(sections["config"])
    users = [line.split("|") for line in sections.get("accounts", ())]
    # a data base may serve several clusters
    here = [words for words in users if words[1] == config.get("ClusterName", words[1])]
    return Facts(
        job_dir=job_dir,
        blocked=None if writable == "writable" else writable,
        free=int(free[0]) * 1024 if free and free[0].isdigit() else None,
        have=frozenset(sections["have"]),
        config=config,
        partitions={one.name: one for one in map(_partition, filter(None, sections["partitions"]))},
        nodes=tuple(map(_nodes, sections["nodes"])),
        associations=tuple(map(_association, here)) if sections.get("qos") else None,
        default_account=users[0][0] if users else "",
        qos=dict(_qos(line) for line in sections.get("qos", ())),
        python="".join(sections["python"]) if "python" in sections else None,
        more={name: sections[name] for name in ("host", "time", "torch", "containers") if name in sections},
    )


def _config(lines: list[str]) -> dict[str, str]:
    pairs = (line.partition("=") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _partition(line: str) -> Partition:
    field = dict(word.split("=", 1) for word in line.split() if "=" in word)
    return Partition(
        name=field["PartitionName"],
        default=field.get("Default") == "YES",
        nodes=int(field.get("TotalNodes", "0")),
        max_nodes=_number(field.get("MaxNodes", "")),
        max_time=_seconds(field.get("MaxTime", "")),
        accounts=_names(field.get("AllowAccounts", "ALL")),
        not_accounts=_names(field.get("DenyAccounts", "")) or frozenset(),
        qos=_names(field.get("AllowQos", "ALL")),
        not_qos=_names(field.get("DenyQos", "")) or frozenset(),
    )


def _nodes(line: str) -> Nodes:
    partition, count, cpus, memory, gres = line.split("|", 4)
    return Nodes(partition, int(count), int(cpus.rstrip("+")), int(memory.rstrip("+")), gpus_of(gres))


def gpus_of(gres: str) -> dict[str, int]:
    """GPUs in generic resources as Slurm writes them: `gpu:h100:8(S:0-1),nvme:2`."""
    gpus: dict[str, int] = {}
    for word in re.sub(r"\([^)]*\)", "", gres).split(","):
        kind, *middle, count = [*word.strip().split(":"), *([] if ":" in word else ["1"])]
        if kind in ("gpu", "gres/gpu"):
            name, number = (":".join(middle), count) if count.isdigit() else (count, "1")
            gpus[name] = gpus.get(name, 0) + int(number)
    return gpus


def _association(words: list[str]) -> Association:
    _, _, account, partition, qos, max_time = words[:6]
    return Association(account, partition, frozenset(filter(None, qos.split(","))), _seconds(max_time))


def _qos(line: str) -> tuple[str, Qos]:
    name, max_time, flags = line.split("|")[:3]
    return name, Qos(_seconds(max_time), frozenset(flags.split(",")))


def _names(text: str) -> frozenset[str] | None:
    return None if text.upper() == "ALL" else frozenset(filter(None, text.split(",")))


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _seconds(text: str) -> int | None:
    """None for no limit, and for what nobody knows how to read."""
    try:
        return time_limit(text) if text and text != "NONE" else None
    except ConfigError:
        return None
