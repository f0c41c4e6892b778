"""Tensors from files: straight into the tensors of a run, however the two are divided, by pieces.

torch's own reader unpickles its index, which can run any code, and loads each part whole beside its target.
"""

from __future__ import annotations

import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import LoadPlan, LoadPlanner, ReadItem, StorageReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.futures import Future

from nemorun.training.checkpoint.index import INDEX, PIECE, THREADS, Place, from_json


class Reader(StorageReader):
    """Reads parts of tensors from `folder` straight into the tensors of a run, by pieces."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metadata, self._places = from_json(json.loads((folder / INDEX).read_text()))

    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None: ...

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self.metadata

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None: ...

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return True

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_place = sorted(plan.items, key=lambda item: (self._place(item).file, self._place(item).begin))
        with ThreadPoolExecutor(THREADS) as pool:
            shares = [by_place[number::THREADS] for number in range(THREADS)]
            list(pool.map(lambda items: self._read(items, planner), shares))
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _place(self, item: ReadItem) -> Place:
        return self._places[item.storage_index]

    @torch.no_grad()
    def _read(self, items: list[ReadItem], planner: LoadPlanner) -> None:
        buffer = torch.empty(0, dtype=torch.uint8)
        for item in items:
            saved = self.metadata.state_dict_metadata[item.storage_index.fqn]
            assert isinstance(saved, TensorStorageMetadata)
            dtype = saved.properties.dtype
            # A number is read as one row of one column; a vector as rows of one column.
            shape = [*self._shapes(item)] or [1]
            offsets, lengths = [*item.storage_offsets] or [0], [*item.lengths] or [1]
            target = planner.resolve_tensor(item).detach().view(lengths)
            row = math.prod(shape[1:]) * dtype.itemsize
            rows = max(1, PIECE // max(row, 1))
            if buffer.numel() < min(rows, lengths[0]) * row:
                pinned = target.device.type == "cuda"
                buffer = torch.empty(max(rows * row, PIECE), dtype=torch.uint8, pin_memory=pinned)
            place = self._place(item)
            with (self.folder / place.file).open("rb", buffering=0) as file:
                for first in range(0, lengths[0], rows):
                    count = min(rows, lengths[0] - first)
                    file.seek(place.begin + (offsets[0] + first) * row)
                    _fill(file, buffer[: count * row])
                    part = buffer[: count * row].view(dtype).view(count, *shape[1:])
                    for dim in range(1, len(shape)):
                        part = part.narrow(dim, offsets[dim], lengths[dim])
                    target.narrow(0, first, count).copy_(part)

    def _shapes(self, item: ReadItem) -> torch.Size:
        """The shape of the part in the file of which `item` wants some."""
        saved = self.metadata.state_dict_metadata[item.storage_index.fqn]
        assert isinstance(saved, TensorStorageMetadata)
        return next(part.sizes for part in saved.chunks if part.offsets == item.storage_index.offset)


def _fill(file: Any, buffer: Tensor) -> None:
    view = buffer.numpy().data
    while view:
        if not (count := file.readinto(view)):
            raise OSError(f"{file.name} ends before what its index says")
        view = view[count:]
