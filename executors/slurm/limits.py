"""What a cluster would refuse, or would let wait for ever, said before anything is submitted.

The scripts themselves are read, so what is judged is what is sent.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping

from nemorun.errors import ConfigError, did_you_mean
from nemorun.executors.slurm.facts import Facts, Nodes, Partition, gpus_of
from nemorun.executors.times import time_limit

#: Options of one component of a job, by their long names without dashes; a flag's value is empty.
Options = Mapping[str, str]

_SHORT = {"A": "account", "p": "partition", "q": "qos", "t": "time", "N": "nodes", "c": "cpus-per-task"}
_BYTES = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2}


#: They tell jobs apart, and ask for nothing.
_NAMES = tuple(f"#SBATCH --{name}=" for name in ("job-name", "comment", "output", "array"))


def directives(script: str) -> str:
    """The `#SBATCH` lines of a script but its names: what it asks for."""
    lines = []
    for line in script.split("\n"):  # and nothing else ends a line for sbatch
        if line.startswith("#SBATCH "):
            if not line.startswith(_NAMES):
                lines.append(line)
        elif line and not line.startswith("#"):
            break
    return "\n".join(lines)


def components(script: str) -> list[Options]:
    """The `#SBATCH` options of a script: one mapping for each component of a heterogeneous job."""
    found: list[dict[str, str]] = [{}]
    for line in script.split("\n"):  # and nothing else ends a line for sbatch
        if line.startswith("#SBATCH "):
            words = shlex.split(line[8:], comments=True)
            if words == ["hetjob"]:
                found.append({})
            elif words:
                name, _, value = words[0].partition("=")
                option = name.lstrip("-")
                found[-1][_SHORT.get(option, option)] = value or " ".join(words[1:])
        elif line and not line.startswith("#"):
            break
    return list(found)


def problems(options: Options, facts: Facts) -> list[str]:
    """Why this cluster would not run such a job: a sentence each, none if it would."""
    name = options.get("partition") or facts.default_partition
    if name is None:
        known = ", ".join(facts.partitions)
        return [f"partition is not set, and the cluster has no default one; it has {known}"]
    wanted = [part.strip() for part in name.split(",")]
    if unknown := [one for one in wanted if one not in facts.partitions]:
        known = ", ".join(facts.partitions) + did_you_mean(unknown[0], facts.partitions)
        return [f"partition='{unknown[0]}': the cluster has no such partition; it has {known}"]
    found = [*_of_account(options, facts, wanted)]
    judged = [list(_of_partition(options, facts, facts.partitions[one])) for one in wanted]
    if all(judged):  # the first that fits takes the job
        found += dict.fromkeys(problem for problems in judged for problem in problems)
    return found


def _of_account(options: Options, facts: Facts, partitions: list[str]) -> Iterator[str]:
    """What accounting says of account and QOS, where it could be asked."""
    if facts.associations is None:
        return
    account, qos = options.get("account") or facts.default_account, options.get("qos")
    mine = {one.account: one.account for one in facts.associations}
    if not mine:
        if facts.enforces("associations"):
            yield "you have no account on this cluster; ask its administrators for one (sacctmgr add user)"
        return
    if not account:
        if facts.enforces("associations"):
            yield f"account is not set, and you have no default one; you have {', '.join(sorted(mine))}"
        return
    if account.lower() not in mine:
        known = ", ".join(sorted(mine)) + did_you_mean(account, mine)
        yield f"account='{account}': it is none of yours on this cluster; you have {known}"
        return
    used = [one for one in facts.associations if one.account == account.lower()]
    fitting = [one for one in used if not one.partition or one.partition in partitions]
    if not fitting:
        only = ", ".join(sorted(one.partition for one in used))
        yield f"account='{account}': you may use it in these partitions only: {only}"
    if qos:
        allowed = {name for one in fitting or used for name in one.qos}
        known = ", ".join(sorted(allowed or facts.qos)) + did_you_mean(qos, allowed or facts.qos)
        if qos not in facts.qos:
            yield f"qos='{qos}': the cluster has no such QOS; you have {known}"
        elif allowed and qos not in allowed and facts.enforces("qos"):
            yield f"qos='{qos}': account '{account}' may not use it; you have {known}"
    seconds = _time(options)
    if seconds and facts.enforces("limits"):
        limits = [(one.max_time, f"account '{account}'") for one in fitting if one.max_time]
        if qos and qos in facts.qos and (limit := facts.qos[qos].max_time):
            limits = [(limit, f"QOS '{qos}'")]
        for limit, whose in limits[:1]:
            if seconds > limit:
                yield f"time={options['time']}: {whose} allows at most {_clock(limit)}"


def _of_partition(options: Options, facts: Facts, partition: Partition) -> Iterator[str]:
    where = f"partition '{partition.name}'"
    account, qos = (options.get("account") or facts.default_account).lower(), options.get("qos", "")
    if account and (
        account in partition.not_accounts or (partition.accounts and account not in partition.accounts)
    ):
        yield f"account='{account}': {where} is not open to it{_only(partition.accounts)}"
    if qos and (qos in partition.not_qos or (partition.qos and qos not in partition.qos)):
        yield f"qos='{qos}': {where} does not take it{_only(partition.qos)}"
    beyond = facts.qos[qos].flags if qos in facts.qos else frozenset()
    seconds = _time(options)
    limit = partition.max_time if "time" in options and "PartitionTimeLimit" not in beyond else None
    if limit and (seconds is None or seconds > limit):
        yield f"time={options['time']}: {where} allows at most {_clock(limit)}"
    nodes = _number(options.get("nodes", "1").partition("-")[0]) or 1
    if partition.max_nodes and nodes > partition.max_nodes and "PartitionMaxNodes" not in beyond:
        yield f"nodes={nodes}: {where} allows at most {partition.max_nodes} for one job"
    elif nodes > partition.nodes:
        yield f"nodes={nodes}: {where} has {partition.nodes}"
    else:
        yield from _of_nodes(options, nodes, where, [n for n in facts.nodes if n.partition == partition.name])


def _of_nodes(options: Options, count: int, where: str, nodes: list[Nodes]) -> Iterator[str]:
    """Does any node have what each node of the job must have?"""
    tasks = _number(options.get("ntasks-per-node", "1")) or 1
    cpus = tasks * (_number(options.get("cpus-per-task", "1")) or 1)
    gpus = _gpus(options, tasks)
    memory = _megabytes(options.get("mem", "")) or _megabytes(options.get("mem-per-gpu", "")) * sum(
        gpus.values()
    )
    fitting = nodes
    needs: list[tuple[str, int, Callable[[Nodes], int]]] = [
        ("CPUs", cpus, lambda node: node.cpus),
        ("MB of memory", int(memory), lambda node: node.memory),
    ]
    for kind, number in gpus.items():
        needs.append((f"GPUs{f' of type {kind}' if kind else ''}", number, _has(kind)))
    for name, wanted, has in needs:
        most = max(map(has, nodes), default=wanted)
        if wanted > most:
            yield f"{wanted} {name} on each node: no node of {where} has more than {most}"
            return
        fitting = [node for node in fitting if has(node) >= wanted]
    if nodes and (there := sum(node.count for node in fitting)) < count:
        yield f"nodes={count}: only {there} nodes of {where} have what each of them must have"


def _has(kind: str) -> Callable[[Nodes], int]:
    return lambda node: node.gpus.get(kind, 0) if kind else sum(node.gpus.values())


def _gpus(options: Options, tasks: int) -> dict[str, int]:
    """GPUs that each node must have: type (or empty) -> number."""
    if value := options.get("gpus-per-node"):
        return gpus_of(f"gpu:{value}")
    if value := options.get("gpus-per-task"):
        return {kind: tasks * number for kind, number in gpus_of(f"gpu:{value}").items()}
    return gpus_of(options.get("gres", ""))


def _time(options: Options) -> int | None:
    try:
        return time_limit(options.get("time"))
    except ConfigError:  # sbatch will say so
        return None


def _megabytes(text: str) -> float:
    match = re.fullmatch(r"(\d+)([KMGT]?)B?", text.strip(), re.IGNORECASE)
    return int(match[1]) * _BYTES[match[2].upper() or "M"] if match else 0


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _only(names: Iterable[str] | None) -> str:
    return f", only to {', '.join(sorted(names))}" if names else ""


def _clock(seconds: int) -> str:
    days, rest = divmod(seconds, 86400)
    clock = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days}-{clock}" if days else clock
