"""What squeue, sacct and scontrol print, as text or as JSON, read into rows; of Slurm 20.11 to 24.11.

Times are seconds since the epoch: the commands are run with SLURM_TIME_FORMAT=%s. What a version does not
say is left empty; nothing is guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

#: Between fields: no name, reason or list of nodes holds it.
SEPARATOR = "\x1f"

#: What squeue is asked for (`--format`) and the fields that they fill.
QUEUE_FORMAT = SEPARATOR.join(["%i", "%A", "%j", "%T", "%r", "%S", "%e", "%N", "%P", "%q", "%l", "%E"])
#: What sacct is asked for (`--format`). FailedNode stands last: not every version has it.
ACCOUNTING_FIELDS = "JobID,JobIDRaw,JobName,State,ExitCode,DerivedExitCode,Start,End,NodeList,Reason"

#: Words of `job_state`, a list in newer JSON, that say more than the state that stands first.
_FLAGS = {"COMPLETING", "CONFIGURING", "RESIZING", "REQUEUE_HOLD", "SPECIAL_EXIT", "STAGE_OUT", "SIGNALING"}
_NOTHING = {"", "None", "N/A", "(null)", "Unknown", "None assigned"}


@dataclass(frozen=True)
class Row:
    """One job, or one element of an array, as one of Slurm's commands tells of it."""

    id: str
    """As sbatch said it, an element as `1234_7`; of a heterogeneous job the first component's."""
    raw: str
    """The number that is this element's own."""
    name: str
    state: str
    """One word: PENDING, RUNNING, COMPLETED ..."""
    reason: str = ""
    start: float | None = None
    """Of what is pending: expected."""
    end: float | None = None
    nodes: str = ""
    partition: str = ""
    qos: str = ""
    limit: str = ""
    dependency: str = ""
    code: int | None = None
    """Exit code of the batch script, and the signal that ended it."""
    signal: int = 0
    by: str = ""
    """Who cancelled it: a user's number, or name."""
    failed_node: str = ""
    restarts: int = 0
    preempted: bool = False
    steps: tuple[str, ...] = ()
    """States of its steps."""


def queue_text(lines: Iterable[str]) -> list[Row]:
    """Lines of `squeue --format=QUEUE_FORMAT`; others are passed over."""
    rows: list[Row] = []
    for line in lines:
        fields = line.split(SEPARATOR)
        if len(fields) == 12:
            number, raw, name, state, reason, start, end, nodes, partition, qos, limit, dependency = fields
            row = Row(
                _component(number),
                raw,
                name,
                state,
                _word(reason),
                _seconds(start),
                _seconds(end),
                _word(nodes),
                partition,
                qos,
                limit,
                _word(dependency),
            )
            rows += _elements(row)
    return rows


def accounting_text(lines: Iterable[str]) -> list[Row]:
    """Lines of `sacct --parsable2`; a job that was requeued has several rows, the oldest first."""
    rows: list[Row] = []
    for line in lines:
        fields = line.split(SEPARATOR)
        if len(fields) < 10:
            continue
        number, raw, name, state, exit_code, _, start, end, nodes, reason = fields[:10]
        state, _, by = state.partition(" by ")
        if "." in number:  # a step: it stands below its job
            if rows:
                rows[-1] = replace(rows[-1], steps=(*rows[-1].steps, state))
            continue
        code, signal = _exit(exit_code)
        row = Row(
            _component(number),
            raw,
            name,
            state.removesuffix("+"),
            _word(reason),
            _seconds(start),
            _seconds(end),
            _word(nodes),
            code=code,
            signal=signal,
            by=by,
            failed_node=_word(fields[10]) if len(fields) > 10 else "",
        )
        rows += _elements(row)
    return rows


def control_text(lines: Iterable[str]) -> list[Row]:
    """Lines of `scontrol --oneliner show job`."""
    rows: list[Row] = []
    for line in lines:
        if not line.startswith("JobId="):
            continue
        said: dict[str, str] = {}
        for key, value in re.findall(r"(?:^| )(\w+)=(\S*)", line):
            said.setdefault(key, value)  # the user's own words stand behind all of these
        raw = said["JobId"]
        number = said.get("ArrayJobId", raw)
        if "ArrayTaskId" in said:
            number += f"_{said['ArrayTaskId']}"
        if said.get("HetJobOffset", "0") != "0":
            number = f"{said['HetJobId']}+{said['HetJobOffset']}"
        state = said.get("JobState", "")
        code, signal = _exit(said.get("ExitCode", ""))
        start, end = (_seconds(said.get(key, "")) for key in ("StartTime", "EndTime"))
        row = Row(
            number,
            raw,
            said.get("JobName", ""),
            state,
            _word(said.get("Reason", "")),
            start,
            end,
            _word(said.get("NodeList", "")),
            said.get("Partition", ""),
            said.get("QOS", ""),
            said.get("TimeLimit", ""),
            _word(said.get("Dependency", "")),
            code,
            signal,
            restarts=int(said.get("Restarts", "0")),
            preempted=_seconds(said.get("PreemptTime", "")) is not None,
        )
        rows += _elements(row)
    return rows


def queue_json(text: str) -> list[Row]:
    """`squeue --json`, the same for all data parsers from openapi/v0.0.37 (21.08) to v0.0.42 (24.11)."""
    rows: list[Row] = []
    for job in _jobs(text):
        number = raw = str(job["job_id"])
        if array := _number(job.get("array_job_id")):
            element = _number(job.get("array_task_id"))
            # elements that still wait stand together, and only their list tells which they are
            waiting = job.get("array_task_string") or ""
            number = f"{array}_{f'[{waiting}]' if waiting else element}"
        elif offset := _number(job.get("het_job_offset")):
            number = f"{_number(job['het_job_id'])}+{offset}"
        code, signal = _exit_json(job.get("exit_code"))
        row = Row(
            number,
            raw,
            job.get("name") or "",
            _state(job["job_state"]),
            _word(job.get("state_reason") or ""),
            _number(job.get("start_time")) or None,
            _number(job.get("end_time")) or None,
            job.get("nodes") or "",
            job.get("partition") or "",
            job.get("qos") or "",
            dependency=job.get("dependency") or "",
            code=code,
            signal=signal,
            failed_node=job.get("failed_node") or "",
            restarts=_number(job.get("restart_cnt")) or 0,
        )
        rows += _elements(row)
    return rows


def accounting_json(text: str) -> list[Row]:
    """`sacct --json`, the same for all data parsers from openapi/dbv0.0.37 (21.08) to v0.0.42 (24.11)."""
    rows: list[Row] = []
    for job in _jobs(text):
        number = raw = str(job["job_id"])
        array, het = job.get("array") or {}, job.get("het") or {}
        if base := _number(array.get("job_id")):
            waiting = array.get("task") or ""
            number = f"{base}_{f'[{waiting}]' if waiting else _number(array.get('task_id'))}"
        elif offset := _number(het.get("job_offset")):
            number = f"{_number(het['job_id'])}+{offset}"
        code, signal = _exit_json(job.get("exit_code"))
        times = job.get("time") or {}
        row = Row(
            number,
            raw,
            job.get("name") or "",
            _state(job["state"]["current"]),
            _word(job["state"].get("reason") or ""),
            _number(times.get("start")) or None,
            _number(times.get("end")) or None,
            _word(job.get("nodes") or ""),
            job.get("partition") or "",
            job.get("qos") or "",
            code=code,
            signal=signal,
            by=job.get("kill_request_user") or "",
            failed_node=job.get("failed_node") or "",
            restarts=_number(job.get("restart_cnt")) or 0,
            steps=tuple(_state(step["state"]) for step in job.get("steps") or ()),
        )
        rows += _elements(row)
    return rows


def _jobs(text: str) -> list[dict[str, Any]]:
    """The document's jobs. Raises ValueError where it tells an error in their place, or is no JSON."""
    document = json.loads(text)
    jobs: list[dict[str, Any]] = document.get("jobs") or []
    words = [error.get("error") or error.get("description") or "" for error in document.get("errors") or ()]
    if words and not jobs and not any("empty" in word for word in words):  # 22.05 says so of no jobs at all
        raise ValueError("; ".join(words))
    return jobs


def indices(listed: str) -> Iterator[int]:
    """The indices of `0-3,7,10-20:5%2`. A list that Slurm has cut short ("...") gives those that it names."""
    for part in listed.partition("%")[0].split(","):
        if found := re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part.strip()):
            first, last, step = found.groups()
            yield from range(int(first), int(last or first) + 1, int(step or 1))


def _elements(row: Row) -> Iterator[Row]:
    """A row for each element, where several that wait stand in one."""
    base, _, listed = row.id.partition("_")
    listed = listed.strip("[]")
    if not listed or listed.isdigit():
        yield row
    else:
        for index in indices(listed):
            yield replace(row, id=f"{base}_{index}")


def _component(number: str) -> str:
    """The first component of a heterogeneous job stands for all of it."""
    return number.removesuffix("+0")


def _word(text: str) -> str:
    return "" if text in _NOTHING else text


def _seconds(text: str) -> float | None:
    return float(text) if text.isdigit() else None


def _exit(text: str) -> tuple[int | None, int]:
    """`code:signal`."""
    code, _, signal = text.partition(":")
    return (int(code), int(signal or 0)) if code.isdigit() else (None, 0)


def _number(value: Any) -> int | None:
    """A number, which is a mapping with `set`, `infinite` and `number` since 23.02."""
    if isinstance(value, dict):
        value = value.get("number") if value.get("set") and not value.get("infinite") else None
    return None if value is None else int(value)


def _state(value: str | list[str]) -> str:
    """The state in one word; since 23.02 (sacct: 23.11) a list of it and of flags."""
    words = [value] if isinstance(value, str) else value
    return next((word for word in words if word in _FLAGS), words[0] if words else "")


def _exit_json(value: Any) -> tuple[int | None, int]:
    """What wait() says (21.08), or code and signal by name. 22.05's sacct says 0 of each that failed."""
    if isinstance(value, dict):
        signal = value.get("signal") or {}
        number = _number(signal.get("id", signal.get("signal_id"))) or 0
        return _number(value.get("return_code")), number
    return (None, 0) if value is None else (int(value) >> 8, int(value) & 127)
