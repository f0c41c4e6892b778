"""Documents joined to one long text, and windows of it; and which documents are kept for validation."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nemorun.llm.data.token_files import TokenFiles
from nemorun.training.batch import Batch
from nemorun.training.loss import IGNORE

_BLOCKS = 1000


class Row(NamedTuple):
    """One sequence of a `Batch`, each [S]."""

    tokens: Tensor
    labels: Tensor
    positions: Tensor | None = None
    padding: Tensor | None = None


class Stream:
    """Ranges of a token file, one after the other, cut into windows of S tokens and the one that follows."""

    def __init__(self, files: TokenFiles, ranges: np.ndarray, seq_length: int, reset: bool) -> None:
        self.files = files
        self.seq_length = seq_length
        self.reset = reset
        """Whether positions restart at each document."""
        self._starts = ranges[:, 0]
        self._at = np.concatenate(([0], np.cumsum(ranges[:, 1] - ranges[:, 0])))
        """Where each range begins in the stream, and where the last one ends."""

    def __len__(self) -> int:
        return int(self._at[-1])

    @property
    def whole_windows(self) -> int:
        return max(len(self) - 1, 0) // self.seq_length

    @property
    def windows(self) -> int:
        """With the last one, which is not whole."""
        return -(-max(len(self) - 1, 0) // self.seq_length)

    def window(self, index: int) -> Row:
        """Sequence `index` and its labels, the tokens that follow; padded at the end and beyond it."""
        start = index * self.seq_length
        stop = min(start + self.seq_length + 1, len(self))
        places = self._places(start, stop)
        parts = [self.files.tokens[a:b] for a, b in places] or [np.empty(0, dtype=np.int64)]
        piece = torch.from_numpy(np.concatenate(parts).astype(np.int64))
        count = max(len(piece) - 1, 0)
        inputs = torch.full((self.seq_length,), self.files.tokenizer["eos"])
        labels = torch.full((self.seq_length,), IGNORE)
        inputs[:count] = piece[:count]
        labels[:count] = piece[1:]
        if not self.reset:
            return Row(inputs, labels)
        firsts = [first for first in self._document_starts(places) if first < len(piece)]
        for first in firsts:
            if first:
                labels[first - 1] = IGNORE  # the first token of the next document is not to be guessed
        return Row(inputs, labels, positions([0, *firsts, count], self.seq_length))

    def _places(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Where the tokens from `start` to before `stop` of the stream lie in the file."""
        places = []
        part = int(np.searchsorted(self._at, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(self._at[part + 1]))
            offset = int(self._starts[part] - self._at[part])
            places.append((start + offset, end + offset))
            start, part = end, part + 1
        return places

    def _document_starts(self, places: list[tuple[int, int]]) -> list[int]:
        """The first tokens of documents, as places in the window."""
        found: list[int] = []
        at = 0
        for start, stop in places:
            first, last = np.searchsorted(self.files.documents, (start, stop))
            found += (self.files.documents[first:last] - start + at).tolist()
            at += stop - start
        return found


def positions(firsts: list[int], length: int) -> Tensor:
    """[length]: from 0 at each of `firsts`, of which those at or beyond the end do not count."""
    result = torch.arange(length)
    for first in firsts:
        if first < length:
            result[first:] = torch.arange(length - first)
    return result


def batch_of(rows: list[Row]) -> Batch:
    def stacked(parts: tuple[Any, ...]) -> Any:
        return None if parts[0] is None else torch.stack(parts)

    return Batch(*map(stacked, zip(*rows, strict=True)))


def split(files: TokenFiles, val_fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Ranges of tokens [n, 2] to train on and to validate on: whole documents, the same at each call.

    Documents next to each other go to one side in up to a thousand blocks (more for very small fractions), so
    that there are few ranges. Of a single document the end is kept.
    """
    documents = files.documents
    count = files.count
    if not val_fraction:
        return _range(0, documents[-1]), _range(0, 0)
    if count == 1:
        middle = int(documents[-1] * (1 - val_fraction))
        return _range(0, middle), _range(middle, documents[-1])
    blocks = min(count, max(_BLOCKS, int(100 / val_fraction)))
    kept = np.zeros(blocks, dtype=bool)
    wanted = min(max(round(val_fraction * blocks), 1), blocks - 1)
    kept[np.random.default_rng(0).permutation(blocks)[:wanted]] = True
    bounds = documents[np.arange(blocks + 1) * count // blocks]
    return _runs(~kept, bounds), _runs(kept, bounds)


def _range(start: int, stop: int) -> np.ndarray:
    return np.array([[start, stop]], dtype=np.int64)


def _runs(chosen: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """The chosen blocks as ranges [n, 2], neighbours joined."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], chosen, [False])).astype(np.int8)))
    return np.stack([bounds[edges[::2]], bounds[edges[1::2]]], axis=1).astype(np.int64)
