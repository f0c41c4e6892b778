"""The logs of a task's pods, kept in its run folder as they are read: `logs/attempt-N/rank-R.log`.

Kubernetes forgets a log with its pod. So what was read is kept here, and `logs/pods/POD-START.json` says how
far that was (`log_lines`). One reader at a time brings what is new; all others read what it has brought.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from nemorun.executors.kubernetes.attempts import Attempt
from nemorun.executors.kubernetes.log_lines import Cursor, Sorted, new_lines, stamped
from nemorun.executors.kubernetes.refusals import ApiError, Lost, NotFound
from nemorun.executors.kubernetes.states import first_failed
from nemorun.executors.kubernetes.watching import FOLLOWING

if TYPE_CHECKING:
    from nemorun.executors.kubernetes.api import Api
    from nemorun.job import JobRef

#: Bytes of one pod that one look brings, about; what is beyond comes with the next one.
BUDGET = 4 << 20
#: Lines that are kept of a pod that nobody has read, and of how many pods.
TAIL, TAILS = 1000, 8
#: Requests at once.
_AT_ONCE = 8

#: Seconds without a word after which a connection counts as lost; a stream of a quiet pod begins anew.
_SILENCE = 60.0
#: Seconds to wait for another reader to come to the end.
_PATIENCE = 10.0

#: Run folder -> when somebody asked last for what is new.
_asked_at: dict[str, float] = {}


def read_on(api: Api, run_dir: str, starts: Sequence[Attempt]) -> None:
    """Bring what is kept of these up to date, as far as their pods are there. Raises ApiError.

    Who asks again and again is served by streams: then this finds it done.
    """
    followed = time.monotonic() - _asked_at.get(run_dir, float("-inf")) < FOLLOWING
    _asked_at[run_dir] = time.monotonic()
    by_index: dict[int, list[Attempt]] = defaultdict(list)
    for one in starts:
        by_index[one.index].append(one)
    with ThreadPoolExecutor(min(_AT_ONCE, len(by_index)) or 1) as pool:
        list(pool.map(lambda of_index: _read_index(api, run_dir, of_index, followed), by_index.values()))


def _read_index(api: Api, run_dir: str, starts: Sequence[Attempt], followed: bool) -> None:
    """The attempts of one node, in order: the last of one tells the first of the next."""
    before = 0
    for one in sorted(starts, key=lambda one: one.number):
        problem = None
        with _hold(run_dir, one, patience=_PATIENCE if one.over else 0.0) as place:
            if place is None:  # somebody is just at it
                continue
            lines = Sorted(one.index * one.ranks, one.ranks, place.cursor, before)
            if not place.cursor.done:
                problem = _take(api, run_dir, one, lines)
            before = max(place.cursor.attempt, before + 1)
        if problem:
            raise problem
        if followed and not one.over:
            threading.Thread(target=_stream, args=(api, run_dir, one, lines.before), daemon=True).start()


def _take(api: Api, run_dir: str, one: Attempt, lines: Sorted) -> ApiError | None:
    """Read one container's log on from where its cursor stands, and write down what is new.

    Returns what was in the way: what came before is written down all the same.
    """
    cursor, size = lines.cursor, 0
    problem: ApiError | None = None
    try:
        for line in new_lines(_fetch(api, one, cursor), cursor):
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
            for line in new_lines(_kept_tail(run_dir, one), cursor) if not cursor.second else ():
                lines.add(line)
            cursor.done = True
    _write_down(run_dir, lines)
    return problem


def _stream(api: Api, run_dir: str, one: Attempt, before: int) -> None:
    """Write down what a container says as it says it. Runs in a thread of its own, while somebody asks."""
    # what goes wrong here goes wrong, or well, when it is read the next time
    with suppress(ApiError, OSError), _hold(run_dir, one) as place:
        if place is None:
            return
        lines = Sorted(one.index * one.ranks, one.ranks, place.cursor, before)

        def pause() -> bool:
            _write_down(run_dir, lines)
            place.save()
            return time.monotonic() - _asked_at[run_dir] < FOLLOWING

        for line in new_lines(_fetch(api, one, place.cursor, pause), place.cursor):
            lines.add(line)
        _write_down(run_dir, lines)


def _write_down(run_dir: str, lines: Sorted) -> None:
    for (attempt, rank), new in lines.files.items():
        _append(log_file(run_dir, attempt, rank), b"".join(new))
    lines.files.clear()


def _request(api: Api, one: Attempt) -> tuple[str, dict[str, str | int]]:
    query: dict[str, str | int] = {"container": one.container, "timestamps": "true"}
    if one.replaced:
        query["previous"] = "true"
    return f"{api.path('Pod', one.pod)}/log", query


def _fetch(
    api: Api, one: Attempt, cursor: Cursor, pause: Callable[[], bool] | None = None
) -> Iterator[bytes]:
    """Lines as they come, the last one only if it is whole, or nobody goes on with it.

    With `pause` also those that are still to come; it is called when there are none just now, and says
    whether to go on.
    """
    from urllib3.exceptions import HTTPError

    path, query = _request(api, one)
    if cursor.second:
        since = datetime.fromtimestamp(cursor.second, timezone.utc)
        query["sinceTime"] = since.strftime("%Y-%m-%dT%H:%M:%SZ")
    if pause is not None:
        query["follow"] = "true"
    answer = api.open(path, silence=_SILENCE, **query)
    rest = b""
    try:
        for block in answer.stream(1 << 16):
            *whole, rest = (rest + block).split(b"\n")
            yield from whole
            if pause is not None and not pause():
                return
        if rest and one.over:
            yield rest
    except HTTPError as error:
        raise Lost(f"the connection to {api.server} was lost: {error}", passing=True) from error
    finally:
        answer.close()


def keep_last_lines(api: Api, ref: JobRef, starts: Sequence[Attempt]) -> None:
    """Of a task that has ended, before its pods go: of its first pod, of the one that failed, and some more.

    What cannot be had is not kept: that is no reason to fail.
    """
    culprit = first_failed(starts)
    first = [one for one in starts if one == culprit or one.index == 0]
    others = [one for one in starts if one not in first]
    for one in [*first[-TAILS:], *others][:TAILS]:
        with suppress(ApiError, OSError), _hold(ref.run_dir, one, _PATIENCE) as place:
            if place and not place.cursor.done and not place.cursor.second:
                path, query = _request(api, one)
                text = api.text(path, tailLines=TAIL, **query)
                _write(_pod_file(ref.run_dir, one, "tail"), text.encode())
    read = [one for one in starts if not _pod_file(ref.run_dir, one, "tail").exists()]
    with suppress(ApiError, OSError):
        read_on(api, ref.run_dir, [one for one in read if _pod_file(ref.run_dir, one, "json").exists()])


def last_lines(api: Api, run_dir: str, one: Attempt, rank: int | None) -> list[str]:
    """What a pod, or one rank of it, said last: from the cluster, else what was kept."""
    sorted_lines = Sorted(one.index * one.ranks, one.ranks, Cursor(), 0)
    path, query = _request(api, one)
    try:
        text = api.text(path, tailLines=TAIL, **query).encode()
    except ApiError:
        text = b"\n".join(_kept_tail(run_dir, one))
    for _, line in stamped(text.split(b"\n")):
        sorted_lines.add(line)
    ranks_of_it = range(one.index * one.ranks, (one.index + 1) * one.ranks) if rank is None else (rank,)
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


class _Place:
    """A cursor that is ours alone while we hold it, and its file."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text = file.read()
        # cut off on a full disk: what was read comes again
        self.cursor = Cursor(**json.loads(self._text)) if self._text.endswith("}") else Cursor()

    def save(self) -> None:
        text = json.dumps(asdict(self.cursor))
        if text != self._text:
            self._file.seek(0)
            self._file.write(text)
            self._file.truncate()
            self._file.flush()
            self._text = text


@contextmanager
def _hold(run_dir: str, one: Attempt, patience: float = 0.0) -> Iterator[_Place | None]:
    """The place in this container's log, saved at the end; None where another reader has it for longer."""
    path = _pod_file(run_dir, one, "json")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    give_up = time.monotonic() + patience
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    yield None
                    return
                time.sleep(0.02)
        place = _Place(file)
        yield place
        place.save()


def _append(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab") as file:
        file.write(data)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CREAT, 0o600), "wb") as file:
        file.write(data)
