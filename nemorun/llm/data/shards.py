"""What one process does at a time: some pieces of files into one shard of tokens, whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nemorun.llm.data.encoders import Encoded, Encoder
from nemorun.llm.data.files import BadLine, Piece, Record, line_number, records
from nemorun.llm.data.token_files import token_type

NAMED = 100
"""Bad lines of a shard that are named; the others are counted."""
_TOGETHER = 1 << 20
"""Bytes that are encoded at once."""


class Shard(NamedTuple):
    """A finished shard."""

    number: int
    documents: int
    tokens: int
    read: int
    """Bytes of the sources."""
    bad_count: int
    bad: list[BadLine]
    """The first of them."""


def write_shard(folder: Path, number: int, parts: Sequence[Piece], encoder: Encoder, most_bad: int) -> Shard:
    """Write shard `number`; gives up early, and keeps nothing, where more than `most_bad` lines are bad."""
    kind = token_type(encoder.tokenizer.vocab_size)
    count = tokens = bad_count = 0
    bad: list[BadLine] = []
    with ExitStack() as stack:
        token_file, lengths, learned = (
            stack.enter_context(path.open("wb")) for path in shard_files(folder, number)
        )
        for one in _encoded(parts, encoder):
            if isinstance(one, BadLine):
                bad_count += 1
                bad += [one] if len(bad) < NAMED else []
                if bad_count > most_bad:
                    break
                continue
            token_file.write(np.array(one.ids, dtype=kind).data)
            lengths.write(len(one.ids).to_bytes(8, "little"))
            if one.learned is not None:
                learned.write(bytes(one.learned))
            count += 1
            tokens += len(one.ids)
        for file in (token_file, lengths, learned):
            file.flush()
            os.fsync(file.fileno())
    shard = Shard(number, count, tokens, sum(part.end - part.start for part in parts), bad_count, bad)
    if bad_count <= most_bad:
        # Its name says that the shard is whole, so it comes last.
        partial = folder / f"{number}.tmp"
        partial.write_text(json.dumps(shard._asdict()))
        partial.replace(folder / f"{number}.json")
    return shard


def finished_shard(folder: Path, number: int) -> Shard | None:
    """The shard, where an earlier run has finished it."""
    try:
        found: dict[str, Any] = json.loads((folder / f"{number}.json").read_text())
        found["bad"] = [BadLine(*one) for one in found["bad"]]
        shard = Shard(**found)
        _, lengths, _ = shard_files(folder, number)
        return shard if lengths.stat().st_size == 8 * shard.documents else None
    except (OSError, ValueError, TypeError, KeyError):
        return None  # such as a disk that was full: it is made again


def shard_files(folder: Path, number: int) -> tuple[Path, Path, Path]:
    """Tokens, lengths of documents, and what is learned."""
    return folder / f"{number}.tokens", folder / f"{number}.lengths", folder / f"{number}.learned"


def _encoded(parts: Sequence[Piece], encoder: Encoder) -> Iterator[Encoded | BadLine]:
    """The records of all pieces, in order."""
    for piece in parts:
        waiting: list[tuple[Record, Any]] = []
        size = 0
        for record in records(piece):
            if isinstance(record, BadLine):
                yield from _flush(waiting, encoder, piece)
                yield record
                continue
            try:
                waiting.append((record, encoder.read(record)))
            except ValueError as error:
                yield from _flush(waiting, encoder, piece)
                yield _bad(piece, record, error)
                continue
            size += len(record.raw)
            if size >= _TOGETHER:
                yield from _flush(waiting, encoder, piece)
                size = 0
        yield from _flush(waiting, encoder, piece)


def _flush(waiting: list[tuple[Record, Any]], encoder: Encoder, piece: Piece) -> Iterator[Encoded | BadLine]:
    if waiting:
        found = encoder.encode([item for _, item in waiting])
        for (record, _), one in zip(waiting, found, strict=True):
            yield _bad(piece, record, one) if isinstance(one, ValueError) else one
    waiting.clear()


def _bad(piece: Piece, record: Record, error: ValueError) -> BadLine:
    return BadLine(piece.file, line_number(record, piece.file), str(error))
