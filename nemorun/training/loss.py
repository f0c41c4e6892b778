"""The loss, summed and not averaged: the trainer divides by the valid tokens of the whole global batch.

A mean over each micro-batch or rank would weigh its tokens by how many others happen to be valid beside them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemorun.training.compiling import fused

#: The label of a position that is not trained on.
IGNORE = -100

_ROWS = 4096
"""Rows whose logits exist at one time."""


def linear_cross_entropy_sum(
    x: Tensor, weight: Tensor, labels: Tensor, group: dist.ProcessGroup | None = None, rows: int = _ROWS
) -> Tensor:
    """Sum of -log p(label) with p = softmax(x @ weight.T), in float32, without ever holding all logits.

    Args:
        x: [..., D], the head's input.
        weight: [V, D], or this rank's [V / ranks, D] where `group` divides the vocabulary.
        labels: [...], int64; positions with IGNORE add nothing, and nothing else gives 0, not NaN.
        group: The ranks that divide the vocabulary, all with the same `x` and `labels`; all get the sum.
            The gradient of `x` is then a part of a sum over them.
        rows: Positions in one go.

    Returns:
        A float32 scalar.
    """
    weight = weight.to(x.dtype)
    return _LinearCrossEntropy.apply(x.flatten(0, -2), weight, labels.flatten(), group, rows)


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradients are made in the forward pass, while the logits of some rows are there."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, labels: Tensor, group: dist.ProcessGroup | None, rows: int
    ) -> Tensor:
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        first = group.rank() * len(weight) if group else 0
        loss = torch.zeros((), device=x.device)
        grad_x = torch.empty_like(x) if wants_x else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        for start in range(0, len(x), rows):
            piece = slice(start, start + rows)
            logits = x[piece] @ weight.T
            part, gradient = _of_rows(logits, labels[piece], first, group, wants_x or wants_weight)
            loss += part
            if gradient is None:
                continue
            if grad_x is not None:
                torch.mm(gradient, weight, out=grad_x[piece])
            if grad_weight is not None:
                grad_weight += gradient.T @ x[piece]
        ctx.dtype = weight.dtype
        ctx.save_for_backward(grad_x, grad_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight = ctx.saved_tensors
        if grad_x is not None:
            grad_x = grad_x * grad.to(grad_x.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * grad).to(ctx.dtype)
        return grad_x, grad_weight, None, None, None


def _of_rows(
    logits: Tensor, labels: Tensor, first: int, group: dist.ProcessGroup | None, wants_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Loss and gradient of some rows' logits [N, V / ranks], whose first column is token `first`."""
    highest = logits.amax(1).float()
    if group:
        dist.all_reduce(highest, dist.ReduceOp.MAX, group)
    column = labels - first
    sums = _sums(logits, highest, column)
    if group:
        dist.all_reduce(sums, group=group)
    total, at_label = sums
    valid = labels != IGNORE
    loss = torch.where(valid, total.log() - at_label, 0.0).sum()
    return loss, _gradient(logits, highest, column, valid / total, valid) if wants_gradient else None


@fused
def _sums(logits: Tensor, highest: Tensor, column: Tensor) -> Tensor:
    """[2, N]: the sum of exp(logit - highest), and logit - highest at the label where it is here."""
    above = logits.float() - highest[:, None]
    at_label = torch.arange(logits.shape[1], device=logits.device) == column[:, None]
    return torch.stack((above.exp().sum(1), torch.where(at_label, above, 0.0).sum(1)))


@fused
def _gradient(logits: Tensor, highest: Tensor, column: Tensor, scale: Tensor, valid: Tensor) -> Tensor:
    """softmax - 1 at the label, and 0 in rows without one; of the logits' type."""
    shares = (logits.float() - highest[:, None]).exp() * scale[:, None]
    at_label = torch.arange(logits.shape[1], device=logits.device) == column[:, None]
    return (shares - (at_label & valid[:, None]).float()).to(logits.dtype)
