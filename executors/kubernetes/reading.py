"""What tasks have written: all ranks, all attempts, from where the reader stopped.

What is new is first brought into the run folder (`keeping`), and read from there: so a reader's offsets are
bytes, and the log of a pod that is gone is there as far as it was read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nemorun.errors import StoreError
from nemorun.executors.base import LogChunk, LogOffsets
from nemorun.executors.kubernetes import attempts
from nemorun.executors.kubernetes.api import api_of
from nemorun.executors.kubernetes.keeping import last_lines, read_on
from nemorun.executors.kubernetes.polling import pods_of
from nemorun.executors.kubernetes.reasons import report
from nemorun.executors.kubernetes.refusals import ApiError
from nemorun.executors.kubernetes.states import first_failed
from nemorun.job import JobRef

if TYPE_CHECKING:
    from nemorun.executors.kubernetes.executor import KubernetesExecutor

_CHUNK = 1 << 20


def logs(
    executor: KubernetesExecutor, reading: Mapping[JobRef, LogOffsets], rank: int | None = None
) -> Iterator[tuple[JobRef, LogChunk]]:
    """What is new, attempts and ranks in order. Where the cluster is silent: what is kept, or ApiError."""
    if not reading:
        return
    problem: ApiError | None = None
    try:
        _bring(executor, reading, rank)
    except ApiError as error:
        problem = error
    for ref, offsets in reading.items():
        for attempt, number, path in _files(Path(ref.run_dir)):
            if rank is None or rank == number:
                for chunk in _chunks(path, attempt, number, offsets.get((attempt, number), 0)):
                    problem = None  # what is there is shown first; the next call says it
                    yield ref, chunk
    if problem is not None:
        raise problem


def _bring(executor: KubernetesExecutor, reading: Mapping[JobRef, LogOffsets], rank: int | None) -> None:
    api = api_of(executor)
    pods = pods_of(api, reading)
    for ref in reading:
        starts = attempts.remember(ref.run_dir, pods[ref.token])
        if rank is not None:
            starts = [one for one in starts if one.index == rank // one.ranks]
        try:
            read_on(api, ref.run_dir, starts)
        except OSError as error:
            raise StoreError(f"the logs of {ref.name} cannot be kept in {ref.run_dir}: {error}") from None


def _files(run_dir: Path) -> Iterator[tuple[int, int, Path]]:
    """(attempt, rank, path), in order."""
    found = []
    for path in run_dir.glob("logs/attempt-*/rank-*.log"):
        attempt, rank = path.parent.name.removeprefix("attempt-"), path.stem.removeprefix("rank-")
        found.append((int(attempt), int(rank), path))
    yield from sorted(found)


def _chunks(path: Path, attempt: int, rank: int, offset: int) -> Iterator[LogChunk]:
    """The file from `offset` on, in whole lines: it holds no others."""
    with path.open("rb") as file:
        file.seek(offset)
        while block := file.read(_CHUNK):
            whole = block[: block.rfind(b"\n") + 1] or block
            file.seek(offset := offset + len(whole))
            yield LogChunk(rank, attempt, whole.decode(errors="replace"), offset)


def excerpt(executor: KubernetesExecutor, ref: JobRef) -> str:
    """The traceback, or the last lines, of the first rank that failed."""
    api = api_of(executor)
    culprit = first_failed(attempts.remember(ref.run_dir, pods_of(api, [ref])[ref.token]))
    if culprit is None:
        return ""
    lines = last_lines(api, ref.run_dir, culprit, report(culprit.note).get("rank"))
    while lines and not lines[-1].strip():
        lines.pop()
    starts = [at for at, line in enumerate(lines) if line.startswith("Traceback (most recent call ")]
    near = starts and starts[-1] >= len(lines) - 60
    return "\n".join(lines[starts[-1] if near else -20 :])
