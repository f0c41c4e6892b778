"""Checks the executor's fields, and a job against them, before anything connects."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from nemorun.errors import ConfigError, did_you_mean
from nemorun.executors.slurm.hatch import check_options
from nemorun.executors.times import time_limit

if TYPE_CHECKING:
    from nemorun.executors.slurm.executor import SlurmExecutor

#: Says what is wrong with a value, or None.
Check = Callable[[Any], "str | None"]

_READ_ONLY = {"BASHOPTS", "BASH_VERSINFO", "EUID", "PPID", "SHELLOPTS", "UID"}
_SIGNALS = (
    *("HUP", "INT", "QUIT", "ABRT", "KILL", "ALRM", "TERM", "USR1", "USR2", "URG"),
    *("CONT", "STOP", "TSTP", "TTIN", "TTOU", "XCPU", "WINCH"),
)
_JOBS = r"(?::\d+(?:_\d+)?(?:\+\d+)?)+"
_DEPENDENCY = rf"(?:after(?:any|burstbuffer|corr|notok|ok)?{_JOBS}|singleton)"
_GRES = r"[A-Za-z]\w*(?:/\w+)?(?::[A-Za-z][\w.-]*)?(?::\d+[KMGT]?)?"


def _whole(least: int, most: int | None = None) -> Check:
    upto = "" if most is None else f" and at most {most}"

    def check(value: Any) -> str | None:
        good = type(value) is int and least <= value and (most is None or value <= most)
        return None if good else f"is not a whole number of at least {least}{upto}"

    return check


def _one_of(*allowed: Any) -> Check:
    names = ", ".join(map(repr, allowed))

    def check(value: Any) -> str | None:
        good = any(type(value) is type(one) and value == one for one in allowed)
        return None if good else f"is none of {names}{did_you_mean(str(value), map(str, allowed))}"

    return check


def _text(pattern: str, wanted: str) -> Check:
    def check(value: Any) -> str | None:
        return None if isinstance(value, str) and re.fullmatch(pattern, value) else f"is not {wanted}"

    return check


def _list(of: Check) -> Check:
    def check(value: Any) -> str | None:
        if not isinstance(value, list | tuple):
            return "is not a list, such as ['…', '…']"
        return next((f"holds {one!r}, which {why}" for one in value if (why := of(one))), None)

    return check


def _time(value: Any) -> str | None:
    good = isinstance(value, str) or type(value) is int
    return (
        None
        if good and _parsed_time(value)
        else (
            "is not a time limit; write minutes, minutes:seconds, hours:minutes:seconds, days-hours,"
            " days-hours:minutes, days-hours:minutes:seconds or UNLIMITED"
        )
    )


def _parsed_time(value: str | int) -> bool:
    try:
        time_limit(value)
    except ConfigError:
        return False
    return not re.search(r"\s", str(value))


def _memory(least: int) -> Check:
    def check(value: Any) -> str | None:
        match = re.fullmatch(r"(\d+)[KMGT]?", value, re.IGNORECASE) if isinstance(value, str) else None
        number = value if type(value) is int else int(match[1]) if match else -1
        if number >= least:
            return None
        return (
            "is not an amount of memory; write a number of megabytes, or one with K, M, G or T, such as 64G"
        )

    return check


def _signal(value: Any) -> str | None:
    match = re.fullmatch(r"(?:(?:B|R|BR|RB):)?(\w+)(?:@(\d+))?", value) if isinstance(value, str) else None
    if match and int(match[2] or 0) <= 65535:
        name = match[1].upper().removeprefix("SIG")
        if name in _SIGNALS or (name.isdigit() and 1 <= int(name) <= 64):
            return None
    return (
        "is not a signal for Slurm; write [B:|R:]SIGNAL[@seconds], such as USR2@90 (at most 65535 seconds);"
        f" signals are {', '.join(_SIGNALS)} or a number"
    )


def _switches(value: Any) -> str | None:
    count, at, wait = (str(value) if type(value) in (int, str) else "").partition("@")
    good = count.isdecimal() and int(count) >= 1 and (not at or _parsed_time(wait))
    return None if good else 'is not a count with a longest wait, such as 1 or "1@2:00:00"'


def _array(value: Any) -> str | None:
    if isinstance(value, bool) or (type(value) is int and value >= 1):
        return None
    if isinstance(value, str) and re.fullmatch(r"%?0*[1-9]\d*", value):
        return None
    if isinstance(value, str) and re.fullmatch(r"\d+[,:%-][\d,:%-]*", value):
        return (
            "is a list of indices, which nemorun counts itself: add a task for each, as a sweep does, and"
            ' write how many may run at once, such as "%4"'
        )
    return 'is not True, False or how many may run at once, such as 4 or "%4"'


_NAME = _text(r"[A-Za-z0-9_][\w.@+-]*", "a name")
_NAMES = _text(r"[A-Za-z0-9_][\w.@+-]*(?:,[A-Za-z0-9_][\w.@+-]*)*", "a name, or several with commas")
_HOSTS = _text(r"[A-Za-z0-9][\w.,\[\]-]*", 'a list of nodes, such as "node[001-004],node007"')
_FEATURES = _text(r"(?!-)[\w.,&|*()\[\]:+!@=/-]+", 'features, such as "h100&nvme"')
_PATH = _text(r"[/~$][^\0\n\r]*", "a folder of the cluster: one that begins with /, ~ or $VARIABLE")
_LINE = _text(r"[^\0\n\r]*\S[^\0\n\r]*", "one line of text")
_ENV_NAME = _text(r"[A-Za-z_][A-Za-z0-9_]*", "the name of an environment variable: letters, digits and _")
_GROUP: dict[str, Check] = {
    "nodes": _whole(1),
    "ntasks_per_node": _whole(1),
    "gpus_per_node": _whole(0),
    "cpus_per_task": _whole(1),
    "mem": _memory(0),
    "partition": _NAMES,
    "constraint": _FEATURES,
    "gres": _text(f"{_GRES}(?:,{_GRES})*", 'generic resources, such as "gpu:h100:8,lustre:1"'),
}


def _group(value: Any) -> str | None:
    if not isinstance(value, Mapping):
        return f"is not a group; write its fields, of {', '.join(_GROUP)}"
    for name, one in value.items():
        if name not in _GROUP:
            return f"has '{name}'; a group has {', '.join(_GROUP)}{did_you_mean(str(name), _GROUP)}"
        if why := _GROUP[name](one):
            return f"has {name}: {one!r} {why}"
    return None


_FIELDS: dict[str, Check] = {
    **_GROUP,
    "retries": _whole(0),
    # a ProxyCommand may hand it to a shell
    "tunnel": _text(
        r"(?!-)[^\s\0'\"`$;&<>|(){}]+", '"local" or a host: a name of ~/.ssh/config, user@host, host:port'
    ),
    "transport": _one_of("paramiko", "openssh"),
    "ssh_config": _LINE,
    "job_dir": _PATH,
    "query": _one_of("text", "json"),
    "account": _NAME,
    "qos": _NAME,
    "reservation": _NAMES,
    "gpus_per_task": _whole(1),
    "mem_per_gpu": _memory(1),
    "time": _time,
    "exclusive": _one_of(True, False, "user", "mcs"),
    "nodelist": _HOSTS,
    "exclude": _HOSTS,
    "switches": _switches,
    "segment": _whole(1),
    "network": _text(r"(?!-)[\w.,:=+-]+", 'what --network takes, such as "sn_single"'),
    "nice": _whole(-2147483645, 2147483645),
    "dependency": _text(
        f"{_DEPENDENCY}(?:,{_DEPENDENCY})*|{_DEPENDENCY}(?:[?]{_DEPENDENCY})*",
        'what Slurm can wait for, such as "afterok:1234:1235,afterany:99" or "singleton"',
    ),
    "comment": _LINE,
    "signal": _signal,
    "requeue": _one_of(True, False),
    "array": _array,
    "het_groups": _list(_group),
    "launcher": _one_of("srun", "torchrun"),
    "venv": _PATH,
    "container_image": _text(
        r"[^\s\0,-][^\s\0,]*", "an image, such as nvcr.io/nvidia/nemo:24.05 or /images/nemo.sqsh"
    ),
    "container_mounts": _list(
        _text(
            r"[/~$][^\s\0,:]*:/[^\s\0,:]*(?::[\w+=-]+)?",
            'a mount; write source:target[:options] with full paths, such as "/data:/data:ro"',
        )
    ),
    "container_workdir": _text(r"/[^\0\n\r]*", "a full path in the container"),
    "container_env": _list(_ENV_NAME),
    "container_runtime": _one_of("pyxis", "apptainer"),
    "modules": _list(_text(r"[A-Za-z0-9_][\w./+:=@-]*", 'a module, such as "cuda/12.2"')),
    "setup": _list(_text(r"[^\0]*", "text without NUL characters")),
}


def check_fields(executor: SlurmExecutor) -> None:
    """Raises ConfigError that names the field, its value and what is allowed."""
    optional = {name for name, field in executor.__dataclass_fields__.items() if field.default is None}
    for name, check in _FIELDS.items():
        value = getattr(executor, name)
        if not (value is None and name in optional) and (why := check(value)):
            raise ConfigError(f"{name}: {value!r} {why}")
    check_environment("env_vars", executor.env_vars)
    check_options("srun_args", executor.srun_args)
    check_options("sbatch_args", executor.sbatch_args)
    _check_together(executor)


def _check_together(executor: SlurmExecutor) -> None:
    """What is right by itself, but not with another field."""
    each, ranks, all_ = executor.gpus_per_task, executor.ntasks_per_node, executor.gpus_per_node
    if each is not None and ranks is not None and all_ is not None and each * ranks != all_:
        raise ConfigError(
            f"gpus_per_node: {all_} are not the {each * ranks} that {ranks} ranks with {each} each need;"
            " leave it out, or change gpus_per_task or ntasks_per_node"
        )
    if executor.mem is not None and executor.mem_per_gpu is not None:
        raise ConfigError(f"mem_per_gpu: {executor.mem_per_gpu!r} cannot be set together with mem")
    if gpus_of(executor.gres) is not None and (each is not None or all_ is not None):
        raise ConfigError(
            f"gres: {executor.gres!r} names GPUs, and so does gpus_per_{'node' if each is None else 'task'};"
            " set only one"
        )
    if executor.retries and not executor.requeue:
        raise ConfigError(f"retries: {executor.retries} need requeue=True: a retry is a requeue of the job")
    if executor.container_image is None:
        for name in ("container_mounts", "container_workdir", "container_env"):
            if value := getattr(executor, name):
                raise ConfigError(f"{name}: {value!r} needs a container; set container_image as well")
    if executor.het_groups:
        if executor.launcher == "torchrun":
            raise ConfigError("launcher: torchrun starts equal nodes only; a job with het_groups needs srun")
        if type(executor.array) is not bool:
            raise ConfigError(
                f"array: {executor.array!r} cannot be: Slurm has no arrays of heterogeneous jobs"
            )


def gpus_of(gres: str | None) -> int | None:
    """How many GPUs of each node `gres` names; None where it names none."""
    parts = [part.split(":") for part in (gres or "").split(",")]
    gpus = [part[-1] for part in parts if part[0] in ("gpu", "gres/gpu")]
    return sum(int(last) if last.isdecimal() else 1 for last in gpus) if gpus else None


def check_environment(where: str, env: object) -> None:
    """Raises ConfigError for what bash cannot export."""
    if not isinstance(env, Mapping):
        raise ConfigError(f"{where}: {env!r} is not a mapping of names to values")
    for name, value in env.items():
        check_variable(where, name)
        if not isinstance(value, str) or "\0" in value:
            raise ConfigError(f"{where}: the value of {name}, {value!r}, must be text without NUL characters")


def check_variable(where: str, name: object) -> None:
    if why := _ENV_NAME(name):
        raise ConfigError(f"{where}: {name!r} {why}")
    if name in _READ_ONLY:
        raise ConfigError(f"{where}: {name!r} is bash's own and cannot be set")
