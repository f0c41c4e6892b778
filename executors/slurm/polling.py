"""How jobs of one cluster stand: one command brings along all that is known of them.

Their journals are read at every poll, so an end is seen at once. Slurm itself is asked every few seconds, and
less and less often while nothing changes: its controller serves everybody.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from nemorun.executors.slurm import parse
from nemorun.executors.slurm.cluster import Cluster, cluster_of
from nemorun.executors.slurm.evidence import Evidence, events
from nemorun.executors.slurm.parse import SEPARATOR, Row
from nemorun.executors.slurm.paths import experiment_id, remote_run_dir
from nemorun.executors.slurm.states import SUBMISSION_LAG, status
from nemorun.job import JobRef, JobState, JobStatus
from nemorun.remote.errors import RemoteError

if TYPE_CHECKING:
    from nemorun.executors.slurm.executor import SlurmExecutor

#: Seconds between two questions to slurmctld: after something changed, and at most.
ASK_AFTER, ASK_AT_MOST = 3.0, 30.0

#: What the lines of `poll.sh` are read with, by kind; JSON comes as lines of one text.
_QUEUE: dict[str, Callable[[list[str]], list[Row]]] = {
    "Q": parse.queue_text,
    "QJ": lambda lines: parse.queue_json(_document(lines)),
}
_ACCOUNTING: dict[str, Callable[[list[str]], list[Row]]] = {
    "A": parse.accounting_text,
    "AJ": lambda lines: parse.accounting_json(_document(lines)),
    "C": parse.control_text,
}


@dataclass
class _Slurm:
    """What Slurm said when it was asked last."""

    tokens: frozenset[str] = frozenset()
    """The jobs that it was asked about."""
    at: float = 0.0
    """By the cluster's clock."""
    silent: str = ""
    """Why squeue did not answer, and why sacct did not."""
    unaccounted: str = ""
    queue: dict[str, Row] = field(default_factory=dict)
    accounting: dict[str, list[Row]] = field(default_factory=dict)
    failures: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Token -> attempt, note of the first rank that failed in it."""
    said: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class _Memory:
    """What this process knows of some experiments at one place."""

    slurm: _Slurm = field(default_factory=_Slurm)
    ask_at: float = 0.0
    pause: float = ASK_AFTER
    statuses: dict[str, JobStatus] = field(default_factory=dict)

    def is_due(self, tokens: frozenset[str]) -> bool:
        """Is Slurm to be asked? At once about jobs that it was not asked about the last time."""
        return time.monotonic() >= self.ask_at or not tokens <= self.slurm.tokens

    def note(self, asked: bool, statuses: Mapping[str, JobStatus]) -> None:
        changed = any(
            (was := self.statuses.get(token)) is None
            or (was.state, was.reason, was.attempt) != (now.state, now.reason, now.attempt)
            for token, now in statuses.items()
        )
        if changed:
            self.pause = ASK_AFTER
        elif asked:
            self.pause = min(1.5 * self.pause, ASK_AT_MOST)
        soon = time.monotonic() + self.pause
        self.ask_at = soon if asked else min(soon, self.ask_at)
        self.statuses |= statuses


_memories: dict[tuple[Hashable, ...], _Memory] = defaultdict(_Memory)
#: Tokens of jobs whose end this process has seen.
_ended: set[str] = set()


def poll(executor: SlurmExecutor, refs: Sequence[JobRef]) -> dict[str, JobStatus]:
    """Token -> status. Raises RemoteError and SubmitError where the cluster cannot be asked."""
    if not refs:
        return {}
    cluster = cluster_of(executor)
    experiments = frozenset(experiment_id(ref.token) for ref in refs)
    memory = _memories[executor.place(), executor.query, experiments]
    ask = memory.is_due(frozenset(ref.token for ref in refs))
    command = cluster.command(
        "poll.sh",
        ASK=int(ask),
        QUERY=executor.query,
        QUEUE_FORMAT=parse.QUEUE_FORMAT,
        FIELDS=f"{parse.ACCOUNTING_FIELDS},FailedNode",
        SINCE=_since(refs),
    )
    lines = "".join(
        f"{number} {remote_run_dir(ref.token, ref.run_dir)} {ref.handle or '-'} {experiment_id(ref.token)}\n"
        for number, ref in enumerate(refs)
    )
    done = cluster.run(command, lines.encode(), retry=True)
    if done.returncode:
        raise RemoteError(f"{cluster.name}: the jobs cannot be looked at: {done.stderr.strip()[-2000:]}")
    answer = _by_kind(done.stdout)
    statuses = {}
    for ref, seen in zip(refs, _evidence(memory, answer, refs, ask), strict=True):
        statuses[ref.token] = status(seen)
    memory.note(ask, statuses)
    _ended.update(token for token, found in statuses.items() if found.state.ended)
    _bring_results(answer, refs, statuses)
    _forget_secrets(cluster, [refs[int(number)] for number in answer["K"]], statuses)
    return statuses


def ask_anew(executor: SlurmExecutor) -> None:
    """Something was done to jobs at this place: what Slurm said before does not count any more."""
    for (place, *_), memory in _memories.items():
        if place == executor.place():
            memory.ask_at = 0.0


def has_ended(ref: JobRef) -> bool:
    """Has this process seen its end?"""
    return ref.token in _ended


def _by_kind(stdout: str) -> dict[str, list[str]]:
    answer: dict[str, list[str]] = defaultdict(list)
    for line in stdout.split("\n"):
        kind, separator, rest = line.partition(SEPARATOR)
        if separator:
            answer[kind].append(rest)
    return answer


def _evidence(
    memory: _Memory, answer: Mapping[str, list[str]], refs: Sequence[JobRef], asked: bool
) -> Iterable[Evidence]:
    now = float(answer["T"][0])
    if asked:
        queue, silent = _read(answer, _QUEUE, "QE", "squeue")
        tokens = frozenset(ref.token for ref in refs)
        memory.slurm = _Slurm(tokens, now, silent, queue={row.id: row for row in queue})
    slurm = memory.slurm
    failures, said = _words(answer, refs)
    slurm.failures |= failures
    slurm.said |= said
    accounting, unaccounted = _read(answer, _ACCOUNTING, "AE", "sacct")
    runs: dict[str, list[Row]] = defaultdict(list)
    for row in accounting:
        runs[row.id].append(row)
    slurm.accounting |= runs
    slurm.unaccounted = unaccounted if asked else slurm.unaccounted
    users = dict(line.split(SEPARATOR) for line in answer["U"])
    journals = _numbered(answer["L"])
    for number, line in enumerate(answer["J"]):
        _, handle, name, index, ordered, folder = line.split(SEPARATOR)
        ref = refs[number]
        queued, accounted, job = _rows(slurm, handle, name, index, experiment_id(ref.token))
        journal = events(journals[str(number)])
        attempt, failure = slurm.failures.get(ref.token, (0, ""))
        missing = f"there is no folder {answer['N'][0]} there" if answer["N"] else ""
        yield Evidence(
            now=now,
            asked_at=slurm.at,
            job=job,
            arrived=bool(name),
            submitting=folder.rpartition("/tasks/")[0] in answer["B"],
            fresh=_is_fresh(ref),
            cancel_ordered=ordered == "1",
            journal=journal,
            queued=queued,
            accounted=accounted,
            silent=slurm.silent or missing,
            unaccounted=slurm.unaccounted,
            failure=failure if not journal or attempt == journal[-1].attempt else "",
            said=slurm.said.get(ref.token, []),
            users=users,
        )


def _read(
    answer: Mapping[str, list[str]],
    readers: Mapping[str, Callable[[list[str]], list[Row]]],
    error: str,
    program: str,
) -> tuple[list[Row], str]:
    """Rows of one of Slurm's commands, and why there are none."""
    try:
        rows = [row for kind, read in readers.items() if answer[kind] for row in read(answer[kind])]
    except ValueError as problem:
        return [], f"{program} does not answer: {problem}"
    words = " ".join(answer[error]).strip()
    return rows, f"{program} does not answer: {words}" if words else ""


def _rows(
    slurm: _Slurm, handle: str, name: str, index: str, experiment: str
) -> tuple[Row | None, list[Row], str]:
    """The job's row of the queue, those of accounting, and its id; without a handle, by its name."""
    if not handle and name:
        named = [row for row in slurm.queue.values() if row.name == name]
        named += [row for rows in slurm.accounting.values() for row in rows if row.name == name]
        found = {row.id for row in named if index == "-" or row.id.endswith(f"_{index}")}
        if len(found) != 1:  # it is not known which of several; or it is an element that is not shown yet
            return None, [], named[0].id.partition("_")[0] if named else ""
        handle = found.pop()
    # A controller that lost what it had not yet saved gives numbers out again: the name must be ours.
    queued = slurm.queue.get(handle)
    accounted = [row for row in slurm.accounting.get(handle, []) if row.name.endswith(f".{experiment}")]
    return queued if queued and queued.name.endswith(f".{experiment}") else None, accounted, handle


def _words(
    answer: Mapping[str, list[str]], refs: Sequence[JobRef]
) -> tuple[dict[str, tuple[int, str]], dict[str, list[str]]]:
    failures = {}
    for line in answer["F"]:
        number, attempt, note = line.split(SEPARATOR, 2)
        failures[refs[int(number)].token] = int(attempt), note
    return failures, {refs[int(number)].token: lines for number, lines in _numbered(answer["S"]).items()}


def _numbered(lines: Iterable[str]) -> dict[str, list[str]]:
    """Lines `number FS text` by their numbers."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        number, _, text = line.partition(SEPARATOR)
        found[number].append(text)
    return found


def _document(lines: list[str]) -> str:
    """The JSON document among what a command printed, warnings included."""
    text = "\n".join(lines)
    return text[text.index("{") : text.rindex("}") + 1]


def _bring_results(
    answer: Mapping[str, list[str]], refs: Sequence[JobRef], statuses: dict[str, JobStatus]
) -> None:
    """Write the results of what has just succeeded into the record, whole and for its owner only."""
    for number, lines in _numbered(answer["R"]).items():
        ref = refs[int(number)]
        target = Path(ref.run_dir) / "result.json"
        part = target.with_name(f"{target.name}.{os.getpid()}")
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write("\n".join(lines) + "\n")
            part.replace(target)
        except OSError as error:  # it is asked for again, when there is room
            words = f"it succeeded, but its result cannot be kept here: {error}"
            statuses[ref.token] = replace(statuses[ref.token], state=JobState.UNKNOWN, message=words)
    for number in answer["X"]:
        ref = refs[int(number)]
        words = "its result is larger than 1 MiB; it stays on the cluster: result.json"
        statuses[ref.token] = replace(statuses[ref.token], message=words)


def _forget_secrets(cluster: Cluster, refs: Sequence[JobRef], statuses: dict[str, JobStatus]) -> None:
    """Delete what tasks that have ended could not delete: they never began, or Slurm killed their script."""
    ended = [ref for ref in refs if statuses[ref.token].state.ended]
    if not ended:
        return
    lines = "".join(f"{remote_run_dir(ref.token, ref.run_dir)}\n" for ref in ended)
    done = cluster.run(cluster.command("forget.sh"), lines.encode(), retry=True)
    for ref in ended if done.returncode else ():
        found = statuses[ref.token]
        words = f"delete its secrets there, which nemorun could not: {done.stderr.strip()}"
        statuses[ref.token] = replace(found, message="; ".join(filter(None, [found.message, words])))


def _is_fresh(ref: JobRef) -> bool:
    """Was its record written just now, so that its submission may still be on its way?"""
    return time.time() - _recorded_at(ref) < SUBMISSION_LAG


def _recorded_at(ref: JobRef) -> float:
    with suppress(OSError):
        return Path(ref.run_dir).stat().st_mtime
    return 0.0


def _since(refs: Sequence[JobRef]) -> str:
    """A date before the submission of all of them, in any time zone."""
    times = [at for ref in refs if (at := _recorded_at(ref))]
    day = datetime.fromtimestamp(min(times)) if times else datetime.now() - timedelta(days=365)
    return (day - timedelta(days=2)).strftime("%Y-%m-%d")
