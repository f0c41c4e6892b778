"""Which part of which tensor lies where: `index.json`, and what the files call a type."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

INDEX = "index.json"
THREADS = 4
PIECE = 16 << 20
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class Place:
    """Where a part of a tensor lies; and its file's size and checksum, which the first rank writes down."""

    file: str
    begin: int
    size: int = 0
    checksum: int = 0


def to_json(metadata: Metadata, places: dict[MetadataIndex, Place]) -> dict[str, Any]:
    tensors = {}
    for name, tensor in metadata.state_dict_metadata.items():
        assert isinstance(tensor, TensorStorageMetadata)
        parts = []
        for chunk in tensor.chunks:
            place = places[MetadataIndex(name, chunk.offsets)]
            parts.append([[*chunk.offsets], [*chunk.sizes], place.file, place.begin])
        tensors[name] = {"dtype": NAMES[tensor.properties.dtype], "shape": [*tensor.size], "parts": parts}
    return {"format": 1, "tensors": tensors}


def from_json(index: dict[str, Any]) -> tuple[Metadata, dict[MetadataIndex, Place]]:
    metadata: dict[str, Any] = {}
    places = {}
    for name, tensor in index["tensors"].items():
        chunks = []
        for offsets, sizes, file, begin in tensor["parts"]:
            chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
            if Path(file).name != file:
                raise ValueError(
                    f"its index names the file {file!r}, which is not beside it: do not trust it"
                )
            places[MetadataIndex(name, torch.Size(offsets))] = Place(file, begin)
        properties = TensorProperties(dtype=_DTYPES[tensor["dtype"]])
        metadata[name] = TensorStorageMetadata(properties, torch.Size(tensor["shape"]), chunks)
    return Metadata(metadata), places
