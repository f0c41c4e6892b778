"""A frozen matrix and what a low-rank adapter adds to it, as one product: x @ weight.T + xa @ b.T.

The adapter's product is thin: it does little arithmetic and is as slow as the memory that it goes through. So
it adds to the matrix's output where that lies, instead of writing an output of its own that somebody then
reads and adds. An operator, because torch.compile takes such a sum apart again; and a new tensor is its only
output, so that what selective recomputation keeps is never changed afterwards.

Shapes: T (rows), D (input), O (output) and R (rank, that of all targets together).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def adapted_product(x: Tensor, weight: Tensor, xa: Tensor, b: Tensor) -> Tensor:
    """x [..., D], weight [O, D], xa [..., R], b [O, R] -> [..., O], all of one type."""
    return _product(x.flatten(0, -2), weight, xa.flatten(0, -2), b).view(*x.shape[:-1], -1)


@torch.library.custom_op("nemorun::adapted_product", mutates_args=())
def _product(x: Tensor, weight: Tensor, xa: Tensor, b: Tensor) -> Tensor:
    return torch.mm(x, weight.t()).addmm_(xa, b.t())


@_product.register_fake
def _(x: Tensor, weight: Tensor, xa: Tensor, b: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    x, weight, xa, b = inputs
    # The input itself is needed for the gradient of a weight only, which a frozen one has not.
    ctx.save_for_backward(x if weight.requires_grad else None, weight, xa, b)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, xa, b = ctx.saved_tensors
    wants_x, wants_weight, wants_xa, wants_b = ctx.needs_input_grad
    return (
        grad @ weight if wants_x else None,
        grad.t() @ x if wants_weight else None,
        grad @ b if wants_xa else None,
        grad.t() @ xa if wants_b else None,
    )


_product.register_autograd(_backward, setup_context=_keep)
