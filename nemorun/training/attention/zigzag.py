"""How a sequence is shared out for context parallelism, and which products each rank then owes.

Of C ranks each holds two of 2C equal chunks, one from either end: rank r has r and 2C - 1 - r. Under a causal
mask every rank then has the same work in every step of the ring (zigzag, as in ring-flash-attention and in
Llama 3's training, arXiv:2407.21783, section 3.3.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

WHOLE = slice(None)


def split_sequence(x: Tensor, rank: int, size: int, dim: int = 1) -> Tensor:
    """Rank `rank`'s two chunks, one after the other, of what has the whole sequence along `dim`."""
    if size == 1:
        return x
    if x.shape[dim] % (2 * size):
        raise ValueError(f"a sequence of {x.shape[dim]} does not divide into 2 x {size} chunks")
    chunks = x.chunk(2 * size, dim)
    return torch.cat((chunks[rank], chunks[-1 - rank]), dim)


def join_sequence(shares: list[Tensor], dim: int = 1) -> Tensor:
    """The whole again from the shares of all ranks, in their order."""
    if len(shares) == 1:
        return shares[0]
    halves = [share.chunk(2, dim) for share in shares]
    return torch.cat([first for first, _ in halves] + [last for _, last in reversed(halves)], dim)


def fold(x: Tensor) -> Tensor:
    """A share's chunks as rows of their own: [B, 2 c, ...] -> [2 B, c, ...]."""
    return x.unflatten(1, (2, -1)).flatten(0, 1)


def unfold(x: Tensor) -> Tensor:
    """Undo `fold`: [2 B, c, ...] -> [B, 2 c, ...]."""
    return x.unflatten(0, (-1, 2)).flatten(1, 2)


class Rectangle(NamedTuple):
    """A product without a mask: in these rows, all of these queries see all of these keys."""

    rows: slice
    queries: slice
    """Of this rank's share."""
    keys: slice
    """Of the share that has come round the ring."""


def whole_rectangles(length: int, rank: int, size: int) -> list[list[Rectangle]]:
    """What rank `rank` owes in each step where a row is one document; its share has `length` tokens.

    In step s it has the keys of rank r - s. Step 0, its own keys, is one causal product, and not listed.
    """
    early, late = slice(0, length // 2), slice(length // 2, length)
    steps: list[list[Rectangle]] = [[]]
    for step in range(1, size):
        before = (rank - step) % size < rank
        steps.append([Rectangle(WHOLE, WHOLE, early) if before else Rectangle(WHOLE, late, WHOLE)])
    return steps


def document_rectangles(documents: Tensor, rank: int, size: int) -> list[list[Rectangle]]:
    """The same where rows hold several documents: `documents` [B, S] numbers them, for the whole sequence.

    Within a chunk the mask is causal and by document; that is not listed here. Of an earlier chunk only the
    document at its end can reach into a later one. A document is contiguous, so the keys of that document
    are the end of the earlier chunk, its queries the beginning of the later one: a rectangle in each row.
    """
    chunks = documents.unflatten(1, (2 * size, -1))
    length = chunks.shape[2]
    steps = []
    for step in range(size):
        owner = (rank - step) % size
        rectangles = []
        for queries_at, later in enumerate((rank, 2 * size - 1 - rank)):
            for keys_at, earlier in enumerate((owner, 2 * size - 1 - owner)):
                if earlier >= later:
                    continue
                for row, seeing, seen in _reaching(chunks[:, earlier], chunks[:, later]):
                    first, end = queries_at * length, (keys_at + 1) * length
                    queries, keys = slice(first, first + seeing), slice(end - seen, end)
                    rectangles.append(Rectangle(slice(row, row + 1), queries, keys))
        steps.append(rectangles)
    return steps


def _reaching(earlier: Tensor, later: Tensor) -> Iterator[tuple[int, int, int]]:
    """Rows where a document reaches from one chunk [B, c] into a later one; its tokens there and here."""
    last = earlier[:, -1:]
    counts = zip((later == last).sum(1).tolist(), (earlier == last).sum(1).tolist(), strict=True)
    return ((row, seeing, seen) for row, (seeing, seen) in enumerate(counts) if seeing)
