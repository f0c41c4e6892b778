"""The loss, summed and not averaged: the trainer divides by the tokens of the whole global batch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

#: The label of a position that is not trained on.
IGNORE = -100


def cross_entropy_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over positions of -log p(label), in float32: logits [B, S, V], labels [B, S] -> scalar.

    Positions whose label is IGNORE add nothing, and a batch of nothing else gives 0, not NaN. A mean over
    each micro-batch would weigh its tokens by how many others happen to be valid beside them.
    """
    return F.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE, reduction="sum"
    )
