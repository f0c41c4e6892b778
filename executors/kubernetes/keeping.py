"""The logs of a task's pods, kept in its run folder as they are read: `logs/attempt-N/rank-R.log`.

Kubernetes takes no offset, only a second to begin from, and forgets a log with its pod. So what was read is
kept here, and `logs/pods/POD-START.json` says how far that was: up to which second, and how many lines since
it began. Those lines come again, and are passed over.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from nemorun.executors.kubernetes.attempts import Attempt
from nemorun.executors.kubernetes.refusals import ApiError, Lost, NotFound
from nemorun.executors.kubernetes.states import first_failed

if TYPE_CHECKING:
    from nemorun.executors.kubernetes.api import Api
    from nemorun.job import JobRef

#: Seconds since the epoch, and nanoseconds.
Instant = tuple[int, int]

#: Bytes of one pod that one look brings, about; what is beyond comes with the next one.
BUDGET = 4 << 20
#: Lines that are kept of a pod that nobody has read, and of how many pods.
TAIL, TAILS = 1000, 8
#: Requests at once.
_AT_ONCE = 8

_SILENCE = 40.0
_STAMP = re.compile(
    rb"(?P<second>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(?P<fraction>\d+))?(?P<zone>Z|[+-]\d\d:\d\d)(?: |$)"
)
_RANK = re.compile(rb"\[rank (\d+)\] ")
_ATTEMPT = re.compile(rb"nemorun: attempt (\d+)")
#: What our part of a pod says when all is well: not worth a line among the task's own.
_ROUTINE = re.compile(rb"nemorun: (attempt \d+|pod \d+ of \d+ waits for the others)")


@dataclass
class Cursor:
    """How far one container's log was read."""

    second: int = 0
    """Of the last line, since the epoch."""
    nanos: int = 0
    count: int = 0
    """Lines since that second began."""
    attempt: int = 0
    """That the lines belong to; 0 before the first."""
    done: bool = False
    """It was read to its end."""

    def move(self, at: Instant) -> None:
        """Behind one more line. A line that is older (a clock was set back) will not come again."""
        if at[0] >= self.second:
            self.count = 1 if at[0] > self.second else self.count + 1
            self.second, self.nanos = at


@dataclass
class _Sorted:
    """Lines, by the attempt and the rank that they belong to."""

    first_rank: int
    ranks: int
    cursor: Cursor
    before: int
    """The last attempt of the pods before this one."""
    files: dict[tuple[int, int], list[bytes]] = field(default_factory=lambda: defaultdict(list))

    def add(self, line: bytes) -> None:
        if mark := _ATTEMPT.fullmatch(line):
            self.cursor.attempt = max(int(mark[1]), self.before + 1, self.cursor.attempt + 1)
        if _ROUTINE.fullmatch(line):
            return
        rank = self.first_rank
        if (prefix := _RANK.match(line)) and rank <= int(prefix[1]) < rank + self.ranks:
            rank, line = int(prefix[1]), line[prefix.end() :]
        self.files[self.cursor.attempt or self.before + 1, rank].append(line + b"\n")


def ranks_per_pod(run_dir: str) -> int:
    """As the record of the job says."""
    with suppress(OSError, ValueError, KeyError):
        spec = json.loads((Path(run_dir) / "job.json").read_text(encoding="utf-8"))
        return int(spec["resources"]["ntasks_per_node"])
    return 1


def read_on(api: Api, run_dir: str, starts: Sequence[Attempt]) -> None:
    """Bring what is kept of these up to date, as far as their pods are there. Raises ApiError."""
    by_index: dict[int, list[Attempt]] = defaultdict(list)
    for one in starts:
        by_index[one.index].append(one)
    with ThreadPoolExecutor(min(_AT_ONCE, len(by_index)) or 1) as pool:
        list(pool.map(lambda of_index: _read_index(api, run_dir, of_index), by_index.values()))


def _read_index(api: Api, run_dir: str, starts: Sequence[Attempt]) -> None:
    """The attempts of one node, in order: the last of one tells the first of the next."""
    before, ranks = 0, ranks_per_pod(run_dir)
    for one in sorted(starts, key=lambda one: one.number):
        problem = None
        with _cursor(run_dir, one) as cursor:
            if not cursor.done:
                problem = _take(api, run_dir, one, _Sorted(one.index * ranks, ranks, cursor, before))
            before = max(cursor.attempt, before + 1)
        if problem:
            raise problem


def _take(api: Api, run_dir: str, one: Attempt, lines: _Sorted) -> ApiError | None:
    """Read one container's log on from where its cursor stands, and write down what is new.

    Returns what was in the way: what came before is written down all the same.
    """
    cursor, size = lines.cursor, 0
    problem: ApiError | None = None
    try:
        for line in _new_lines(_fetch(api, one, cursor), cursor):
            lines.add(line)
            size += len(line)
            if size > BUDGET:
                break
        else:
            cursor.done = one.over
    except ApiError as error:
        if not isinstance(error, NotFound) and error.status != 400:
            problem = error
        elif isinstance(error, NotFound) or one.over:  # 400: it has not begun to write, or it is forgotten
            for line in _new_lines(_kept_tail(run_dir, one), cursor) if not cursor.second else ():
                lines.add(line)
            cursor.done = True
    for (attempt, rank), new in lines.files.items():
        _append(log_file(run_dir, attempt, rank), b"".join(new))
    return problem


def _request(api: Api, one: Attempt) -> tuple[str, dict[str, str | int]]:
    query: dict[str, str | int] = {"container": one.container, "timestamps": "true"}
    if one.replaced:
        query["previous"] = "true"
    return f"{api.path('Pod', one.pod)}/log", query


def _fetch(api: Api, one: Attempt, cursor: Cursor) -> Iterator[bytes]:
    """Lines as they come, the last one only if it is whole, or nobody goes on with it."""
    from urllib3.exceptions import HTTPError

    path, query = _request(api, one)
    if cursor.second:
        query["sinceTime"] = datetime.fromtimestamp(cursor.second, timezone.utc).strftime(
            "%Y-%m-%dT%H:%M:%SZ"
        )
    answer = api.open(path, silence=_SILENCE, **query)
    rest = b""
    try:
        for block in answer.stream(1 << 16):
            *whole, rest = (rest + block).split(b"\n")
            yield from whole
        if rest and one.over:
            yield rest
    except HTTPError as error:
        raise Lost(f"the connection to {api.server} was lost: {error}", passing=True) from error
    finally:
        answer.close()


def _new_lines(lines: Iterable[bytes], cursor: Cursor) -> Iterator[bytes]:
    """The lines behind the cursor, which moves along."""
    coming = _stamped(lines)
    again = list(islice(coming, cursor.count))
    known = cursor.second, cursor.nanos
    if cursor.count and (len(again) < cursor.count or again[-1][0] != known):
        # The node begins a new file at 10 MiB, and of the old one we get no more.
        if not any(at > known for at, _ in again):
            return
        cursor.count = 0
        yield b"nemorun: lines may be missing here: the node has begun a new file of this log"
        coming = chain(again, coming)
    for at, line in coming:
        fresh = cursor.count > 0 or at > known
        cursor.move(at)
        if fresh:
            yield line


def _stamped(lines: Iterable[bytes]) -> Iterator[tuple[Instant, bytes]]:
    for line in lines:
        if found := _STAMP.match(line):  # what the kubelet itself has to say has none
            nanos = int((found["fraction"] or b"0").ljust(9, b"0"))
            yield (_epoch(found["second"] + found["zone"]), nanos), line[found.end() :]


@lru_cache(16)
def _epoch(text: bytes) -> int:
    return int(datetime.fromisoformat(text.decode().replace("Z", "+00:00")).timestamp())


def keep_last_lines(api: Api, ref: JobRef, starts: Sequence[Attempt]) -> None:
    """Of a task that has ended, before its pods go: of its first pod, of the one that failed, and some more.

    What cannot be had is not kept: that is no reason to fail.
    """
    culprit = first_failed(starts)
    first = [one for one in starts if one == culprit or one.index == 0]
    others = [one for one in starts if one not in first]
    for one in [*first[-TAILS:], *others][:TAILS]:
        with suppress(ApiError, OSError), _cursor(ref.run_dir, one) as cursor:
            if not cursor.done and not cursor.second:
                path, query = _request(api, one)
                text = api.text(path, tailLines=TAIL, **query)
                _write(_pod_file(ref.run_dir, one, "tail"), text.encode())
    followed = [one for one in starts if _pod_file(ref.run_dir, one, "json").exists()]
    with suppress(ApiError, OSError):
        read_on(api, ref.run_dir, followed)


def last_lines(api: Api, run_dir: str, one: Attempt, rank: int | None) -> list[str]:
    """What a pod, or one rank of it, said last: from the cluster, else what was kept."""
    ranks = ranks_per_pod(run_dir)
    sorted_lines = _Sorted(one.index * ranks, ranks, Cursor(), 0)
    path, query = _request(api, one)
    try:
        text = api.text(path, tailLines=TAIL, **query).encode()
    except ApiError:
        text = b"\n".join(_kept_tail(run_dir, one))
    for _, line in _stamped(text.split(b"\n")):
        sorted_lines.add(line)
    ranks_of_it = range(one.index * ranks, (one.index + 1) * ranks) if rank is None else (rank,)
    for number in ranks_of_it:
        found = [line for (_, of), lines in sorted_lines.files.items() if of == number for line in lines]
        if not found and (
            kept := sorted(Path(run_dir).glob(f"logs/attempt-*/rank-{number}.log"), key=_attempt_of)
        ):
            found = kept[-1].read_bytes().split(b"\n")[-TAIL:]
        if found:
            return [line.decode(errors="replace").rstrip("\n") for line in found]
    return []


def _attempt_of(path: Path) -> int:
    return int(path.parent.name.removeprefix("attempt-"))


def log_file(run_dir: str, attempt: int, rank: int) -> Path:
    return Path(run_dir) / "logs" / f"attempt-{attempt}" / f"rank-{rank}.log"


def _pod_file(run_dir: str, one: Attempt, kind: str) -> Path:
    return Path(run_dir) / "logs" / "pods" / f"{one.pod}-{one.restart}.{kind}"


def _kept_tail(run_dir: str, one: Attempt) -> list[bytes]:
    with suppress(FileNotFoundError):
        return _pod_file(run_dir, one, "tail").read_bytes().split(b"\n")
    return []


@contextmanager
def _cursor(run_dir: str, one: Attempt) -> Iterator[Cursor]:
    """The cursor, ours alone while it is used; where it stands then is written down."""
    path = _pod_file(run_dir, one, "json")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        text = file.read()
        cursor = Cursor(**json.loads(text)) if text else Cursor()
        yield cursor
        now = json.dumps(asdict(cursor))
        if now != text:
            file.seek(0)
            file.write(now)
            file.truncate()


def _append(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab") as file:
        file.write(data)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CREAT, 0o600), "wb") as file:
        file.write(data)
