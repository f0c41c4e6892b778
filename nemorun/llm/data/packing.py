"""Examples in rows: which of them share one, and the row as tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from nemorun.llm.data.shuffle import Shuffle
from nemorun.llm.data.stream import Row, positions
from nemorun.llm.data.token_files import TokenFiles
from nemorun.training.loss import IGNORE

_LOOKED_AT = 20
"""Windows by which a long epoch is judged."""


def first_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Rows of places in `lengths`, each of at most `room` in all; what is longer has a row for itself.

    The longest come first, and each goes into the first row that has room for it.
    """
    order = sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
    rows: list[list[int]] = []
    left = np.zeros(len(lengths), dtype=np.int64)
    for place in order:
        length = min(lengths[place], room)
        row = int(np.argmax(left[: len(rows)] >= length)) if rows else 0
        if row == len(rows) or left[row] < length:
            row = len(rows)
            rows.append([])
            left[row] = room
        rows[row].append(place)
        left[row] -= length
    return rows


class Place(NamedTuple):
    """Where a run stands: after so many epochs, windows of the epoch, rows of the window."""

    epoch: int = 0
    window: int = 0
    row: int = 0


@dataclass(frozen=True)
class RowOrder:
    """The rows of all epochs, in an order set by a seed; a window of it is computed when it is wanted."""

    lengths: np.ndarray
    """Tokens of each example."""
    room: int
    """Tokens in a row."""
    window: int
    """Examples that are packed together. 0: no packing."""
    seed: int | None
    """None: in their own order."""

    @property
    def windows(self) -> int:
        """In an epoch."""
        return -(-len(self.lengths) // self._size)

    def rows(self, epoch: int, window: int) -> list[list[int]]:
        """The rows of a window, each a list of examples."""
        size = self._size
        places = range(window * size, min((window + 1) * size, len(self.lengths)))
        examples: list[int] = list(places)
        if self.seed is not None:
            shuffle = Shuffle(len(self.lengths), self.seed, epoch)
            examples = [shuffle[place] for place in places]
        if not self.window:
            return [[example] for example in examples]
        packed = first_fit([int(self.lengths[example]) for example in examples], self.room)
        rows = [[examples[place] for place in row] for row in packed]
        if self.seed is None:
            return rows
        order = Shuffle(len(rows), self.seed, epoch, window)  # else the long examples always come first
        return [rows[order[place]] for place in range(len(rows))]

    def after(self, place: Place) -> Iterator[tuple[list[int], Place]]:
        """Rows from `place` on, over epochs without end, each with the place after it."""
        epoch, window, first = place
        while True:
            rows = self.rows(epoch, window)
            for row in range(first, len(rows)):
                yield rows[row], Place(epoch, window, row + 1)
            window, first = window + 1, 0
            if window == self.windows:
                epoch, window = epoch + 1, 0

    def count(self, epoch: int) -> int:
        """Rows of an epoch: some seconds for a million examples."""
        return sum(len(self.rows(epoch, window)) for window in range(self.windows))

    def about(self) -> tuple[int, bool]:
        """Rows of the first epoch, judged by its first windows where it has many; whether that is exact."""
        if self.windows <= _LOOKED_AT or not self.window:
            return (self.count(0) if self.window else len(self.lengths)), True
        rows = sum(len(self.rows(0, window)) for window in range(_LOOKED_AT))
        return round(rows * len(self.lengths) / (_LOOKED_AT * self.window)), False

    @property
    def _size(self) -> int:
        return self.window or 1000


def row_of(files: TokenFiles, examples: Sequence[int], length: int) -> Row:
    """Examples one after the other, padded to `length`; positions restart with each, and with the padding.

    The last token of an example is a label only, so an example takes one place less than it has tokens.
    """
    assert files.learned is not None
    tokens = torch.full((length,), files.tokenizer["eos"])
    labels = torch.full((length,), IGNORE)
    firsts = []
    at = 0
    for example in examples:
        start, stop = (int(place) for place in files.documents[example : example + 2])
        stop = min(stop, start + length + 1 - at)
        ids = torch.from_numpy(files.tokens[start:stop].astype(np.int64))
        learned = torch.from_numpy(files.learned[start + 1 : stop].astype(bool))
        end = at + len(learned)
        tokens[at:end] = ids[:-1]
        labels[at:end] = torch.where(learned, ids[1:], IGNORE)
        firsts.append(at)
        at = end
    return Row(tokens, labels, positions([*firsts, at], length), torch.arange(length) >= at)
