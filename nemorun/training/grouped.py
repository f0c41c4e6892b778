"""One product for many weights: consecutive rows, each run of them with a weight of its own.

Torch's own grouped product (CUTLASS) runs where it can: in bfloat16 on a GPU, with rows of whole 16 bytes.
It reads the runs' ends on the device, so that nothing waits for them. Elsewhere one plain product for each
weight does the same, behind an operator that torch.compile takes as it is.

Shapes: T (rows), E (weights), O and D (their height and width).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def grouped_product(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """x [T, D], weight [E, O, D], ends [E] -> [T, O]: rows ends[e - 1] to ends[e] times weight[e].T.

    `ends` are int32 and ascending, the last is T. A weight without rows gets a gradient of zeros.
    """
    if suits_gpu(x, weight):
        return F.grouped_mm(x, weight.transpose(1, 2), offs=ends)
    return _one_by_one(x, weight, ends)


def suits_gpu(x: Tensor, weight: Tensor) -> bool:
    """Does torch's own product take rows like `x`? If not, the host waits for the device to know the runs."""
    height, width = weight.shape[1:]
    whole_lines = height % 8 == 0 and width % 8 == 0
    return x.is_cuda and x.dtype == torch.bfloat16 and whole_lines and x.shape[0] > 0


@torch.library.custom_op("nemorun::grouped_product", mutates_args=())
def _one_by_one(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    y = x.new_empty(x.shape[0], weight.shape[1])
    for expert, rows in enumerate(_runs(ends)):
        torch.mm(x[rows], weight[expert].T, out=y[rows])
    return y


@_one_by_one.register_fake
def _(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@torch.library.custom_op("nemorun::grouped_weight_gradient", mutates_args=())
def _weight_gradient(grad: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    """grad [T, O], x [T, D] -> [E, O, D]."""
    result = x.new_empty(ends.shape[0], grad.shape[1], x.shape[1])
    for expert, rows in enumerate(_runs(ends)):
        torch.mm(grad[rows].T, x[rows], out=result[expert])
    return result


@_weight_gradient.register_fake
def _(grad: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(ends.shape[0], grad.shape[1], x.shape[1])


def _runs(ends: Tensor) -> list[slice]:
    limits = [0, *ends.tolist()]
    return [slice(start, end) for start, end in pairwise(limits)]


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, weight, ends = ctx.saved_tensors
    grad_x = _one_by_one(grad, weight.transpose(1, 2), ends) if ctx.needs_input_grad[0] else None
    grad_weight = _weight_gradient(grad, x, ends) if ctx.needs_input_grad[1] else None
    return grad_x, grad_weight, None


_one_by_one.register_autograd(_backward, setup_context=_keep)
