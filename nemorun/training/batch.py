"""One micro-batch: as data hands it to the trainer, and as a rank's model takes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nemorun.training.attention import Documents, split_sequence
from nemorun.training.layout import Layout


@dataclass
class Batch:
    """Rows of tokens on the CPU; B rows (the micro-batch size) of S tokens."""

    tokens: Tensor
    """[B, S] int64."""
    labels: Tensor
    """[B, S] int64: the token that follows each, or `nemorun.training.loss.IGNORE` where none is learned."""
    positions: Tensor | None = None
    """[B, S] int64: the place of each token in its document, from 0 at each first. No token attends to
    another document of its row. Padding is a document as well. None: a row is one document."""
    padding: Tensor | None = None
    """[B, S] bool: where a row has no token of its own. None: nowhere."""


@dataclass
class Inputs:
    """What a model needs beside its tokens, on this rank's device; S is this rank's share of the sequence."""

    labels: Tensor | None = None
    """[B, S] int64. None: the model answers with logits."""
    positions: Tensor | None = None
    """[S], or [B, S] with documents: where each token stands. None: 0 to S - 1."""
    documents: Documents | None = None
    """Where documents begin and end, if a row has several."""
    padding: Tensor | None = None
    """[B, S] bool, where no token stands. None: nowhere."""
    loss_scale: float = 1.0
    """What the loss is multiplied by before its backward pass: told in the forward pass, where the head makes
    its weight's gradient."""


def shared_out(batch: Batch, layout: Layout) -> tuple[Tensor, Inputs]:
    """This rank's share of the sequence on its device: tokens [B, S] and the rest."""
    device = layout.ranks.device

    def share(x: Tensor, dim: int = 1) -> Tensor:
        if layout.context_ranks > 1:
            x = split_sequence(x, layout.context_rank, layout.context_ranks, dim)
        # Without pinning, the copy would wait for all that the GPU has still to do.
        return (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)

    documents = None
    if batch.positions is None:
        positions = share(torch.arange(batch.tokens.shape[1]), dim=0)
    else:
        positions = share(batch.positions)
        documents = Documents(batch.positions, device, layout.context_rank, layout.context_ranks)
    padding = None if batch.padding is None else share(batch.padding)
    return share(batch.tokens), Inputs(share(batch.labels), positions, documents, padding)
