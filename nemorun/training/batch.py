"""One micro-batch of one data-parallel rank, as data hands it to the trainer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Batch:
    """Rows of tokens on the CPU; B rows (the micro-batch size) of S tokens."""

    tokens: Tensor
    """[B, S] int64."""
    labels: Tensor
    """[B, S] int64: the token that follows each, or `nemorun.training.loss.IGNORE` where none is learned."""
    positions: Tensor | None = None
    """[B, S] int64: the place of each token in its document, from 0 at each first. No token attends to another
    document of its row. Padding is a document as well. None: a row is one document."""
