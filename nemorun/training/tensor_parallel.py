"""Tensor parallelism (Shoeybi et al. 2019) with sequence parallelism (Korthikanti et al. 2022).

A block's attention and its feed-forward layer are each a region: what enters is whole, each rank's matrices
turn it into a part of a sum, and what leaves is that sum. Between regions the ranks divide the sequence
(`splits_sequence`), or each repeats what the others do. Matrices divided by rows of the weight come first in
a region, those divided by columns last; so the two exchanges below are all.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate


class Region:
    """How activations enter and leave the matrices that `group` divides. Without a group: as they are."""

    def __init__(self, group: dist.ProcessGroup | None = None, splits_sequence: bool = False) -> None:
        self.group = group
        self.splits_sequence = splits_sequence
        self.ranks = group.size() if group else 1
        self.rank = group.rank() if group else 0

    def enter(self, x: Tensor) -> Tensor:
        """[B, S / ranks or S, D] -> [B, S, D], whose gradient is summed over the ranks on its way back."""
        if self.group is None:
            return x
        return _Gather.apply(x, self.group) if self.splits_sequence else _SumGradient.apply(x, self.group)

    def leave(self, x: Tensor) -> Tensor:
        """[B, S, D], a part of a sum -> the sum: [B, S / ranks or S, D]."""
        if self.group is None:
            return x
        return _SumAndSplit.apply(x, self.group) if self.splits_sequence else _Sum.apply(x, self.group)

    def join(self, x: Tensor) -> Tensor:
        """[..., V / ranks], each rank's own part -> [..., V]; without a gradient."""
        if self.group is None:
            return x
        return _gather(x, self.group, dim=x.ndim - 1)


WHOLE = Region()
"""No tensor parallelism."""


def local(parameter: nn.Parameter | Tensor, sum_over: dist.ProcessGroup | None = None) -> Tensor:
    """This rank's part of a weight, as a plain tensor that passes its gradient on.

    `sum_over`: the tensor-parallel ranks, where each has only a part of the gradient of a weight that all
    hold whole.
    """
    if not isinstance(parameter, DTensor):
        return parameter
    part = parameter.to_local()
    if sum_over is None or not isinstance(parameter.placements[-1], Replicate):
        return part
    return _SumGradient.apply(part, sum_over)


# torch's own collectives along another dimension than the first cannot be compiled in every release.
def _gather(x: Tensor, group: dist.ProcessGroup, dim: int = 1) -> Tensor:
    """Join the ranks' parts along `dim`."""
    parts = funcol.wait_tensor(funcol.all_gather_tensor(x.contiguous(), 0, group))
    return parts.unflatten(0, (group.size(), -1)).movedim(0, dim).flatten(dim, dim + 1)


def _scatter(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Add up the ranks' [B, S, D] and keep this rank's part of S."""
    parts = x.unflatten(1, (group.size(), -1)).movedim(1, 0).flatten(0, 1)
    return funcol.wait_tensor(funcol.reduce_scatter_tensor(parts.contiguous(), "sum", 0, group))


def _sum(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    return funcol.wait_tensor(funcol.all_reduce(x.contiguous(), "sum", group))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _gather(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _scatter(grad, ctx.group), None


class _SumAndSplit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _scatter(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _gather(grad, ctx.group), None


class _SumGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _sum(grad, ctx.group), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _sum(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
