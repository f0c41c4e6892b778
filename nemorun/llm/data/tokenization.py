"""Sources into one folder of tokens: by several processes, resumable, and there as a whole or not at all.

Beside the output, `OUTPUT.partial` holds shards until all are done. They are put together in the order of the
sources, so the result does not depend on how many processes there were or how often they were interrupted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

from nemorun.llm.data.encoders import Encoder
from nemorun.llm.data.files import BadLine, Piece, files_of, identity, pieces
from nemorun.llm.data.merging import merge
from nemorun.llm.data.shards import Shard, finished_shard, write_shard
from nemorun.llm.data.token_files import ABOUT, FORMAT, TOKENIZER
from nemorun.llm.data.tokenizer import Tokenizer
from nemorun.training.errors import TrainingError

SHARD_BYTES = 32 << 20
"""Bytes of the sources in one shard."""
_BAD_AT_MOST = 1000
"""Bad lines, beyond those allowed, after which reading on is of no use."""


class Progress(NamedTuple):
    """How far it has come."""

    read: int
    """Bytes of the sources."""
    total: int
    tokens: int
    kept: int
    """Shards that an earlier run has made."""


class Tokenised(NamedTuple):
    """The result."""

    folder: Path
    documents: int
    tokens: int
    bad_count: int
    bad: list[BadLine]
    """The first bad lines, which are left out."""
    was_there: bool
    """Whether an earlier run has made it already."""


def tokenize(
    sources: Sequence[str | Path],
    output: str | Path,
    encoder: Encoder,
    *,
    workers: int = 1,
    skip_bad: int = 0,
    shard_bytes: int = SHARD_BYTES,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Tokenised:
    """Make the folder `output` of the sources (files or folders), or go on where an earlier call ended.

    Raises TrainingError: a source is missing, more than `skip_bad` lines are bad, or `output` is there and
    was made of something else. With several workers, call it from a script's `if __name__ == "__main__":`.
    """
    final = Path(output).expanduser().absolute()
    files = [file for source in sources for file in files_of(source, "source")]
    plan = hashlib.sha256(json.dumps([FORMAT, encoder.about(), identity(files)]).encode()).hexdigest()
    partial = final.with_name(f"{final.name}.partial")
    if final.exists():
        found = _made_before(final, plan)
        _discard(partial)
        return found
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with _alone(partial):
            parts = pieces(files, shard_bytes)
            shards = _prepared(partial, plan, parts)
            done = _run(shards, parts, encoder, workers, skip_bad, report)
            about = {**encoder.about(), "plan": plan, "sources": [str(source) for source in sources]}
            result = publish(partial, shards, done, about, final, skip_bad, encoder.tokenizer)
        _discard(partial)
    except OSError as error:
        raise TrainingError(
            f"{final} could not be made: {error}. What was finished is kept in {partial}; "
            "the same command goes on from there"
        ) from error
    return result


def publish(
    work: Path,
    shards: Path,
    done: list[Shard],
    about: dict[str, Any],
    final: Path,
    skip_bad: int,
    tokenizer: Tokenizer | None = None,
) -> Tokenised:
    """Put finished shards together in `work`, with a copy of `tokenizer`, and give that the name `final`."""
    bad = [line for shard in done for line in shard.bad]
    bad_count = sum(shard.bad_count for shard in done)
    good = sum(shard.documents for shard in done)
    check_bad(bad_count, bad, skip_bad, good, kept=work if tokenizer else None)
    result = work / "result"
    shutil.rmtree(result, ignore_errors=True)
    result.mkdir()
    if tokenizer:
        tokenizer.save(result / TOKENIZER)
    documents, tokens = merge(shards, done, result, about, bad_count, bad)
    if not documents:
        raise TrainingError(f"there is no document in {', '.join(about['sources'])}")
    result.rename(final)
    return Tokenised(final, documents, tokens, bad_count, bad, was_there=False)


def check_bad(
    count: int, bad: Sequence[BadLine], allowed: int, good: int, kept: Path | None = None, more: str = ""
) -> None:
    """Raises TrainingError that names bad lines where there are more than are allowed."""
    if count <= allowed:
        return
    named = "\n  ".join(str(line) for line in bad[:20])
    others = f"\n  and {count - 20:,} more" if count > 20 else ""
    keeps = f" What was finished is kept in {kept}." if kept else ""
    raise TrainingError(
        f"{count_bad(count)}, {good:,} good{more}; skip_bad={allowed} allows {allowed:,}:\n  {named}"
        f"{others}\nNothing was made of them.{keeps} Mend the lines, or allow more: skip_bad, on the command "
        "line --skip-bad"
    )


def count_bad(count: int) -> str:
    return f"{count:,} bad line{'' if count == 1 else 's'}"


def _made_before(final: Path, plan: str) -> Tokenised:
    try:
        about = json.loads((final / ABOUT).read_text())
        same = about["plan"] == plan
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise TrainingError(
            f"{final} is there already, and was not made of these sources with this tokenizer: "
            "take another folder, or delete it"
        )
    bad = [BadLine(*line) for line in about["bad"]]
    return Tokenised(final, about["documents"], about["tokens"], about["bad_lines"], bad, was_there=True)


def _prepared(partial: Path, plan: str, parts: Sequence[Sequence[Piece]]) -> Path:
    """The folder for shards: that of an earlier run of the same plan, else an empty one."""
    shards = partial / "shards"
    wanted = json.dumps([plan, [list(map(list, part)) for part in parts]])
    name = partial / "plan.json"
    if not (name.is_file() and name.read_text() == wanted):
        shutil.rmtree(shards, ignore_errors=True)
        name.write_text(wanted)
    shards.mkdir(exist_ok=True)
    return shards


def _run(
    shards: Path,
    parts: Sequence[Sequence[Piece]],
    encoder: Encoder,
    workers: int,
    skip_bad: int,
    report: Callable[[Progress], None],
) -> list[Shard]:
    """All shards, in their order."""
    done = {n: found for n in range(len(parts)) if (found := finished_shard(shards, n))}
    left = [n for n in range(len(parts)) if n not in done]
    total = sum(piece.end - piece.start for part in parts for piece in part)
    kept = len(done)
    most_bad = skip_bad + _BAD_AT_MOST

    def tell() -> int:
        read, tokens = (sum(getattr(s, name) for s in done.values()) for name in ("read", "tokens"))
        report(Progress(read, total, tokens, kept))
        return sum(shard.bad_count for shard in done.values())

    bad_count = tell()
    with contextlib.closing(_shards(shards, parts, left, encoder, workers, most_bad)) as made:
        for shard in made:
            done[shard.number] = shard
            bad_count = tell()
            if bad_count > most_bad:
                break
    ordered = [done[number] for number in sorted(done)]
    if bad_count > most_bad:
        bad = [line for shard in ordered for line in shard.bad]
        good = sum(shard.documents for shard in ordered)
        check_bad(bad_count, bad, skip_bad, good, more=" so far, so the rest was not read")
    return ordered


def _shards(
    folder: Path,
    parts: Sequence[Sequence[Piece]],
    numbers: Sequence[int],
    encoder: Encoder,
    workers: int,
    most_bad: int,
) -> Generator[Shard]:
    """The shards as they are finished."""
    workers = min(workers, len(numbers))
    if workers <= 1:
        yield from (write_shard(folder, number, parts[number], encoder, most_bad) for number in numbers)
        return
    # Not by fork: threads of tokenizers and numpy do not survive it.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (encoder,))
    try:
        futures = [pool.submit(_work, folder, n, parts[n], most_bad) for n in numbers]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool:
        raise TrainingError(
            "a worker was killed, as Linux does when memory runs out. The same command goes on from what was "
            "finished; fewer workers need less memory"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_encoder: Encoder
"""In a worker: read once, used for each shard."""


def _start_worker(encoder: Encoder) -> None:
    global _encoder
    _encoder = encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are parallel enough
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # Ctrl-C goes to all; the parent says it
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed cannot tell its workers, and they would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _work(folder: Path, number: int, parts: Sequence[Piece], most_bad: int) -> Shard:
    return write_shard(folder, number, parts, _encoder, most_bad)


@contextlib.contextmanager
def _alone(partial: Path) -> Iterator[None]:
    """Nobody else makes the same output meanwhile. Raises TrainingError if somebody does."""
    import fcntl

    with (partial / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError(f"another process is at work in {partial}: wait for it, or end it") from None
        except OSError:
            pass  # a file system without locks
        yield


def _discard(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
