"""A frozen matrix and a low-rank adapter as one product: x @ weight.T + (x @ a.T) @ b.T.

The adapter's products are thin: they do little arithmetic and are as slow as the memory that they go through.
So they are written first, where the output is to lie, and the matrix's product is added to them, forward and
in the gradient of x: a product reads what it is added to while it multiplies, which takes hardly any time.
An operator, because torch.compile takes such a sum apart again; and a new tensor is its only output, so that
what selective recomputation keeps is never changed afterwards.

Shapes: T (rows), D (input), O (output) and R (rank, that of all targets together).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from nemorun.training import cublas
from nemorun.training.compiling import HAS_TRITON

_WIDEST = 128
"""Ranks up to which a product is thin."""


class Adapter(NamedTuple):
    """What adds (x @ a.T) @ b.T to a matrix's product."""

    a: Tensor
    """[R, D]"""
    b: Tensor
    """[O, R]"""
    dropped: Tensor | None = None
    """What it sees instead of x [..., D], where some of that is dropped."""

    def of_rows(self) -> Adapter:
        """The same for x [T, D]."""
        return self if self.dropped is None else self._replace(dropped=self.dropped.flatten(0, -2))


def adapted_linear(x: Tensor, weight: Tensor, adapter: Adapter) -> Tensor:
    """x [..., D], weight [O, D] (frozen) -> [..., O], all of one type."""
    y: Tensor = _AdaptedLinear.apply(x.flatten(0, -2), weight, *adapter.of_rows())
    return y.view(*x.shape[:-1], -1)


class _AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, dropped: Tensor | None) -> Tensor:
        seen = x if dropped is None else dropped
        xa = seen @ a.t()
        ctx.save_for_backward(seen, weight, xa, a, b)
        ctx.drops = dropped is not None
        return _product(x, weight, xa, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        seen, weight, xa, a, b = ctx.saved_tensors
        grad_xa = grad @ b
        grads = None, grad_xa.t() @ seen, grad.t() @ xa
        if ctx.drops:
            return grad @ weight, *grads, grad_xa @ a
        wants_x = ctx.needs_input_grad[0]
        return _product(grad, weight.t(), grad_xa, a.t()) if wants_x else None, *grads, None


@torch.library.custom_op("nemorun::adapted_product", mutates_args=())
def _product(x: Tensor, weight: Tensor, xa: Tensor, b: Tensor) -> Tensor:
    """x [T, D] @ weight [O, D].T + xa [T, R] @ b [O, R].T"""
    y = thin_product(xa, b)
    if not cublas.can_multiply(y, x, weight):
        return y.addmm_(x, weight.t())
    cublas.add_product(y, x, weight)
    return y


@_product.register_fake
def _(x: Tensor, weight: Tensor, xa: Tensor, b: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def thin_product(xa: Tensor, b: Tensor) -> Tensor:
    """xa [T, R] @ b [O, R].T"""
    if xa.is_cuda and HAS_TRITON and xa.dtype == torch.bfloat16 and xa.shape[1] <= _WIDEST:
        from nemorun.training import kernels

        return kernels.thin_product(xa, b)
    return xa @ b.t()
