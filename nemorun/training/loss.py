"""The loss, summed and not averaged: the trainer divides by the valid tokens of the whole global batch.

A mean over each micro-batch or rank would weigh its tokens by how many others happen to be valid beside them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemorun.training.compiling import HAS_TRITON, fused
from nemorun.training.products import add_product, product

#: The label of a position that is not trained on.
IGNORE = -100

_ROWS = 8192
"""Rows whose logits exist at one time."""


def linear_cross_entropy_sum(
    x: Tensor,
    weight: Tensor,
    labels: Tensor,
    group: dist.ProcessGroup | None = None,
    rows: int = _ROWS,
    total: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Sum of -log p(label) with p = softmax(x @ weight.T), in float32, without ever holding all logits.

    Args:
        x: [..., D], the head's input.
        weight: [V, D], or this rank's [V / ranks, D] where `group` divides the vocabulary.
        labels: [...], int64; positions with IGNORE add nothing, and nothing else gives 0, not NaN.
        group: The ranks that divide the vocabulary, all with the same `x` and `labels`; all get the sum.
            The gradient of `x` is then a part of a sum over them.
        rows: Positions in one go.
        total: [V, D] in float32, to which the weight's gradient is added instead of being given: times
            `scale`, which the backward pass is to begin with.

    Returns:
        A float32 scalar.
    """
    weight = weight.to(x.dtype)
    if not torch.is_grad_enabled():  # which a function of autograd cannot tell
        x, weight = x.detach(), weight.detach()
    return _LinearCrossEntropy.apply(x.flatten(0, -2), weight, labels.flatten(), group, rows, total, scale)


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradients are made in the forward pass, while the logits of some rows are there."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        labels: Tensor,
        group: dist.ProcessGroup | None,
        rows: int,
        total: Tensor | None,
        scale: float,
    ) -> Tensor:
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        first = group.rank() * len(weight) if group else 0
        loss = torch.zeros((), device=x.device)
        grad_x = torch.empty_like(x) if wants_x else None
        grad_weight = None
        if wants_weight and total is None:
            total = grad_weight = torch.zeros_like(weight, dtype=torch.float32)
            scale = 1.0
        for start in range(0, len(x), rows):
            piece = slice(start, start + rows)
            logits = product(x[piece], weight)
            loss += _of_rows(logits, labels[piece], first, group, wants_x or wants_weight)
            if grad_x is not None:
                torch.mm(logits, weight, out=grad_x[piece])
            if wants_weight and total is not None:
                add_product(total, logits.T, x[piece], scale)
            del logits  # before the next ones come
        ctx.dtype = weight.dtype
        ctx.save_for_backward(grad_x, grad_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight = ctx.saved_tensors
        if grad_x is not None:
            grad_x = grad_x * grad.to(grad_x.dtype)
        if grad_weight is not None:
            grad_weight = _scaled(grad_weight, grad, ctx.dtype)
        return grad_x, grad_weight, None, None, None, None, None


def _of_rows(
    logits: Tensor, labels: Tensor, first: int, group: dist.ProcessGroup | None, wants_gradient: bool
) -> Tensor:
    """Loss of some rows' logits [N, V / ranks], whose first column is token `first`; they become their
    gradient, where that is wanted."""
    column = labels - first
    here = (column >= 0) & (column < logits.shape[1])
    at = torch.arange(len(logits), device=logits.device) * logits.shape[1] + torch.where(here, column, 0)
    at_label = torch.where(here, logits.view(-1)[at], 0.0).float()
    highest, total = _sums(logits)
    if group:
        highest_here = highest.clone()
        dist.all_reduce(highest, dist.ReduceOp.MAX, group)
        sums = torch.stack((total * (highest_here - highest).exp(), at_label))
        dist.all_reduce(sums, group=group)
        total, at_label = sums
    log_total = highest + total.log()
    valid = labels != IGNORE
    loss = torch.where(valid, log_total - at_label, 0.0).sum()
    if not wants_gradient:
        return loss
    # exp(-inf) is 0, for rows without a label
    _to_shares(logits, torch.where(valid, log_total, torch.inf))
    # At the label it is 1 less, in float32: shares near 1 are told apart by few bits.
    numbers = logits.view(-1)
    less = ((at_label - log_total).exp() - 1).to(logits.dtype)
    numbers[at] = torch.where(here & valid, less, numbers[at])
    return loss


def _sums(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of [N, V]: the highest logit, and the sum of exp(logit - highest)."""
    if logits.is_cuda and HAS_TRITON:
        from nemorun.training import kernels

        return kernels.softmax_sums(logits)
    numbers = logits.float()
    highest = numbers.amax(1)
    return highest, (numbers - highest[:, None]).exp().sum(1)


def _to_shares(logits: Tensor, log_total: Tensor) -> None:
    """Make them their softmax, given the logarithm of each row's sum."""
    if logits.is_cuda and HAS_TRITON:
        from nemorun.training import kernels

        kernels.to_shares(logits, log_total)
    else:
        logits.copy_((logits.float() - log_total[:, None]).exp())


@fused()
def _scaled(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    return (x * factor).to(dtype)
