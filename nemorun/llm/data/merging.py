"""Finished shards put together: the last step of making a folder of tokens."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nemorun.llm.data.files import BadLine
from nemorun.llm.data.shards import NAMED, Shard, shard_files
from nemorun.llm.data.token_files import ABOUT, DOCUMENTS, FORMAT, LEARNED, TOKENS

_BLOCK = 8 << 20


def merge(
    shards: Path,
    done: Sequence[Shard],
    result: Path,
    about: dict[str, Any],
    bad_count: int,
    bad: Sequence[BadLine],
) -> tuple[int, int]:
    """Write the files of the folder `result`, on the disk when this returns; gives documents and tokens."""
    # One digest for each file, so that how the text was cut into shards does not matter.
    digests = [hashlib.sha256() for _ in range(3)]
    at = documents = 0
    with (result / TOKENS).open("wb") as tokens, (result / DOCUMENTS).open("wb") as index:
        index.write((0).to_bytes(8, "little"))
        for shard in done:
            token_file, lengths, _ = shard_files(shards, shard.number)
            _append(tokens, token_file, digests[0])
            ends = np.cumsum(np.fromfile(lengths, dtype="<i8")) + at
            index.write(ends.astype("<i8").data)
            digests[1].update(ends.data)
            at += shard.tokens
            documents += shard.documents
        _sync(tokens)
        _sync(index)
    if about["kind"] == "examples":
        with (result / LEARNED).open("wb") as learned:
            for shard in done:
                _append(learned, shard_files(shards, shard.number)[2], digests[2])
            _sync(learned)
    content = {
        "format": FORMAT,
        **about,
        "documents": documents,
        "tokens": at,
        "sha256": hashlib.sha256(b"".join(one.digest() for one in digests)).hexdigest(),
        "bad_lines": bad_count,
        "bad": [list(line) for line in bad[:NAMED]],
    }
    with (result / ABOUT).open("w") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(result)
    return documents, at


def _append(target: BinaryIO, source: Path, digest: Any) -> None:
    with source.open("rb") as opened:
        while block := opened.read(_BLOCK):
            digest.update(block)
            target.write(block)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
