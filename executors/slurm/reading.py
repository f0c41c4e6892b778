"""What jobs of one cluster have written: one command brings all that is new, in whole lines where they exist.

Each rank has a log of each attempt. The batch script's own log, in which `setup` and Slurm speak, comes as
that of rank 0 in attempt 0, since it goes through all attempts and begins before the first.
"""

from __future__ import annotations

import base64
import codecs
import gzip
import re
import secrets
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from nemorun.executors.base import LogChunk, LogOffsets
from nemorun.executors.slurm.cluster import cluster_of
from nemorun.executors.slurm.paths import remote_run_dir
from nemorun.executors.slurm.polling import has_ended
from nemorun.job import JobRef
from nemorun.remote.errors import RemoteError

if TYPE_CHECKING:
    from nemorun.executors.slurm.executor import SlurmExecutor

#: Bytes that one command brings, about; what is beyond comes with the next one.
BUDGET = 4 << 20

#: What our part of the batch script says when all is well, and srun after each rank that fails: not worth a
#: line among the task's own.
_ROUTINE = re.compile(
    r"^(nemorun: attempt \d+ (of .*|ended: succeeded.*)|srun: launch/slurm: _step_signal: Terminating .*)\n",
    re.MULTILINE,
)


def logs(
    executor: SlurmExecutor, reading: Mapping[JobRef, LogOffsets], rank: int | None = None
) -> Iterator[tuple[JobRef, LogChunk]]:
    """What is new, attempts and ranks in order. Raises RemoteError and SubmitError."""
    if not reading:
        return
    refs = list(reading)
    mark = secrets.token_hex(16)
    cluster = cluster_of(executor)
    command = cluster.command("logs.sh", MARK=mark, RANK="" if rank is None else rank, BUDGET=BUDGET)
    done = cluster.run(command, "".join(_request(reading)).encode(), retry=True)
    if done.returncode:
        raise RemoteError(f"{cluster.name}: the logs cannot be read: {done.stderr.strip()[-2000:]}")
    for piece in gzip.decompress(base64.b64decode(done.stdout)).split(f"\n{mark} ".encode())[1:]:
        head, _, data = piece.partition(b"\n")
        number, attempt, of_rank, offset, finished, more = map(int, head.split())
        data = _whole(data, finished=bool(finished), more=bool(more))
        text = data.decode(errors="replace")
        if attempt == 0:
            text = _ROUTINE.sub("", text)
        if text:
            yield refs[number], LogChunk(of_rank, attempt, text, offset + len(data))


def _request(reading: Mapping[JobRef, LogOffsets]) -> Iterator[str]:
    for number, (ref, offsets) in enumerate(reading.items()):
        folder = remote_run_dir(ref.token, ref.run_dir)
        yield f"J {number} {folder} {ref.handle or '-'} {int(has_ended(ref))}\n"
        for (attempt, rank), offset in offsets.items():
            yield f"O {number} {attempt} {rank} {offset}\n"


def _whole(data: bytes, *, finished: bool, more: bool) -> bytes:
    """Whole lines; the last one as it stands if nobody goes on with it.

    Of a line that is longer than the piece, whole characters.
    """
    if finished and not more:
        return data
    whole = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
    if more and not whole:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(data)
        whole = len(data) - len(decoder.getstate()[0])
    return data[:whole]


def excerpt(executor: SlurmExecutor, ref: JobRef) -> str:
    """The traceback, or the last lines, of the first rank that failed; of the batch script if none wrote."""
    cluster = cluster_of(executor)
    command = cluster.command(
        "excerpt.sh", RUN=remote_run_dir(ref.token, ref.run_dir), HANDLE=ref.handle or "-"
    )
    done = cluster.run(command, retry=True)
    if done.returncode:
        raise RemoteError(f"{cluster.name}: the logs cannot be read: {done.stderr.strip()[-2000:]}")
    rank, _, batch = done.stdout.partition("\n\f\n")
    return _last_words(rank) or _last_words(_ROUTINE.sub("", batch))


def _last_words(text: str) -> str:
    lines = text.rstrip().splitlines()
    starts = [at for at, line in enumerate(lines) if line.startswith("Traceback (most recent call ")]
    near = starts and starts[-1] >= len(lines) - 60
    return "\n".join(lines[starts[-1] if near else -20 :])
