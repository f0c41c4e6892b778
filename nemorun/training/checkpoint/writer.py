"""Tensors into files: what torch.distributed.checkpoint plans is written as safetensors.

torch's own writer pickles, and holds the interpreter while it copies and sums: a training loop in the same
process stands still for that. Here a part goes from memory to the file in pieces, by calls that let other
threads run, and its checksum is taken on the way. (The safetensors library wants a whole file in memory.)
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import SavePlan, SavePlanner, StorageWriter, WriteItem
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from nemorun.training.checkpoint.folder import checksum_of_file, sync_folder, write_synced
from nemorun.training.checkpoint.index import INDEX, NAMES, PIECE, THREADS, Place, to_json

_SMALL = 64 << 20  # A rank with less writes one file.


class Writer(StorageWriter):
    """Writes into `folder`; then the first rank calls `publish` with each file's size and checksum."""

    def __init__(self, folder: Path, rank: int, publish: Callable[[dict[str, list[int]]], None]) -> None:
        self.folder = folder
        self._rank = rank
        self._publish = publish

    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None: ...

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None: ...

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return True

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        self.folder.mkdir(parents=True, exist_ok=True)
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        heaps = _share_out(plan.items)
        names = [f"rank-{self._rank:05d}.{number}.safetensors" for number in range(len(heaps))]
        with ThreadPoolExecutor(THREADS) as pool:
            written = pool.map(lambda name, items: self._write_file(name, items, planner), names, heaps)
            results = [result for of_file in written for result in of_file]
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        places: dict[MetadataIndex, Place] = {r.index: r.storage_data for of_rank in results for r in of_rank}
        write_synced(self.folder / INDEX, json.dumps(to_json(metadata, places)))
        files = {place.file: [place.size, place.checksum] for place in places.values()}
        index = self.folder / INDEX
        files[INDEX] = [index.stat().st_size, checksum_of_file(index)]
        self._publish(files)

    def _write_file(self, name: str, items: list[WriteItem], planner: SavePlanner) -> list[WriteResult]:
        # Wide types first, so that each part is aligned for whoever maps the file into memory.
        items = sorted(items, key=lambda item: -_dtype_of(item).itemsize)
        header: dict[str, Any] = {}
        end = 0
        begins = []
        for item in items:
            begins.append(end)
            end += _bytes_of(item)
            header[_name_of(item)] = {
                "dtype": NAMES[_dtype_of(item)],
                "shape": [*_chunk_of(item).sizes],
                "data_offsets": [begins[-1], end],
            }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (self.folder / name).open("wb", buffering=0) as file:
            checksum = _write(file, memoryview(len(text).to_bytes(8, "little") + text), 0)
            for item in items:
                part = planner.resolve_data(item)
                assert isinstance(part, Tensor)
                checksum = _write(file, _memory_of(part), checksum)
            os.fsync(file.fileno())
        sync_folder(self.folder)
        start = 8 + len(text)
        return [
            WriteResult(item.index, _bytes_of(item), Place(name, start + begin, start + end, checksum))
            for item, begin in zip(items, begins, strict=True)
        ]


def _share_out(items: Sequence[WriteItem]) -> list[list[WriteItem]]:
    """Heaps of about the same size, one a file and a thread."""
    if sum(map(_bytes_of, items)) < _SMALL:
        return [list(items)] if items else []
    heaps: list[list[WriteItem]] = [[] for _ in range(THREADS)]
    sizes = [0] * THREADS
    for item in sorted(items, key=_bytes_of, reverse=True):
        smallest = sizes.index(min(sizes))
        heaps[smallest].append(item)
        sizes[smallest] += _bytes_of(item)
    return [heap for heap in heaps if heap]


def _chunk_of(item: WriteItem) -> ChunkStorageMetadata:
    assert item.tensor_data is not None
    return item.tensor_data.chunk


def _dtype_of(item: WriteItem) -> torch.dtype:
    assert item.tensor_data is not None
    return item.tensor_data.properties.dtype


def _bytes_of(item: WriteItem) -> int:
    return math.prod(_chunk_of(item).sizes) * _dtype_of(item).itemsize


def _name_of(item: WriteItem) -> str:
    """The tensor's name; of a part of it, with the part's bounds."""
    chunk = _chunk_of(item)
    assert item.tensor_data is not None
    if chunk.sizes == item.tensor_data.size:
        return item.index.fqn
    bounds = (f"{o}:{o + size}" for o, size in zip(chunk.offsets, chunk.sizes, strict=True))
    return f"{item.index.fqn}[{', '.join(bounds)}]"


def _memory_of(tensor: Tensor) -> memoryview:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data


def _write(file: Any, data: memoryview, checksum: int) -> int:
    """Write all of `data`; returns the checksum of the file so far."""
    for begin in range(0, len(data), PIECE):
        piece = data[begin : begin + PIECE]
        checksum = zlib.crc32(piece, checksum)
        while piece:
            piece = piece[file.write(piece) :]
    return checksum
