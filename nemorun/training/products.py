"""Matrix products that torch has no fast call for: of one row, and those that are added to something."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nemorun.training import cublas
from nemorun.training.compiling import HAS_TRITON


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., D] @ weight [O, D].T; of one row, without a gradient, at the speed at which a GPU reads."""
    one_row = x.numel() == x.shape[-1] and x.dtype == weight.dtype
    if one_row and x.is_cuda and HAS_TRITON and not torch.is_grad_enabled():
        return row_product(x.reshape(1, -1), weight).view(*x.shape[:-1], -1)
    return F.linear(x, weight)


@torch.library.custom_op("nemorun::row_product", mutates_args=())
def row_product(x: Tensor, weight: Tensor) -> Tensor:
    """x [1, D] @ weight [O, D].T"""
    if not (x.is_cuda and HAS_TRITON):
        return x @ weight.t()
    from nemorun.training import kernels

    return kernels.row_product(x, weight)


@row_product.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(1, len(weight))


def add_product(total: Tensor, a: Tensor, b: Tensor, scale: float = 1.0) -> None:
    """total (float32) += scale x a @ b, in one pass where the product is a GPU's."""
    if a.is_cuda and torch.version.cuda and a.dtype != torch.float32:
        torch.addmm(total, a, b, alpha=scale, out_dtype=torch.float32, out=total)
    else:
        total.add_(a @ b, alpha=scale)


def add(total: Tensor, x: Tensor) -> None:
    """total (float32) += x; for two types, torch's own kernel takes twice as long as memory does."""
    if x.is_cuda and HAS_TRITON and x.is_contiguous():
        from nemorun.training import kernels

        kernels.add(total, x)
    else:
        total += x


def trained_linear(x: Tensor, weight: Tensor, total: Tensor | None, more: Tensor | None) -> Tensor:
    """x [..., D] @ weight [O, D].T + more [..., O], by one product.

    The weight's gradient is added to `total` [O, D] (float32), where there is one.
    """
    y: Tensor = _TrainedLinear.apply(x, weight, total, more)
    return y


class _TrainedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, total: Tensor | None, more: Tensor | None) -> Tensor:
        ctx.adds = more is not None
        ctx.save_for_backward(x, weight, total)
        return product(x, weight, more)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, total = ctx.saved_tensors
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        grad_x = grad @ weight if wants_x else None
        of_weight = None
        if wants_weight:
            of_weight = weight_gradient(grad.flatten(0, -2), x.flatten(0, -2), total)
        return grad_x, of_weight, None, grad if ctx.adds else None


def product(x: Tensor, weight: Tensor, more: Tensor | None = None) -> Tensor:
    """x [..., D] @ weight [O, D].T + more [..., O], if there is any; without gradients."""
    if more is None and not (weight.is_cuda and cublas.is_wide(*weight.shape)):
        return F.linear(x, weight)
    return _product(x, weight, more)


@torch.library.custom_op("nemorun::product", mutates_args=())
def _product(x: Tensor, weight: Tensor, more: Tensor | None) -> Tensor:
    """An operator, because torch's own copies `more` before it multiplies, and makes wide ones slowly."""
    if cublas.can_multiply(*(one for one in (x, weight, more) if one is not None)):
        return cublas.product(x, weight, more)
    y = F.linear(x, weight)
    return y if more is None else y.add_(more)


@_product.register_fake
def _(x: Tensor, weight: Tensor, more: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


def weight_gradient(grad: Tensor, x: Tensor, total: Tensor | None) -> Tensor | None:
    """grad [T, O].T @ x [T, D]; None where it is added to `total` [O, D] (float32) instead."""
    if total is None:
        return grad.t() @ x
    _add_gradient(total, grad, x)
    return None


@torch.library.custom_op("nemorun::add_weight_gradient", mutates_args=("total",))
def _add_gradient(total: Tensor, grad: Tensor, x: Tensor) -> None:
    """total [O, D] += grad [T, O].T @ x [T, D]; an operator, which torch.compile leaves as it is."""
    add_product(total, grad.t(), x)


@_add_gradient.register_fake
def _(total: Tensor, grad: Tensor, x: Tensor) -> None: ...


def summed_embedding(tokens: Tensor, weight: Tensor, total: Tensor) -> Tensor:
    """The rows of weight [V, D] at tokens [...], whose gradient is added to total [V, D] (float32).

    To the rows that were read only: as a gradient of its own, it would be of all of them, and mostly zeros.
    """
    y: Tensor = _SummedEmbedding.apply(weight, tokens, total)
    return y


class _SummedEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, tokens: Tensor, total: Tensor) -> Tensor:
        ctx.save_for_backward(tokens, total)
        return F.embedding(tokens, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        tokens, total = ctx.saved_tensors
        total.index_add_(0, tokens.flatten(), grad.flatten(0, -2).to(total.dtype))
        return None, None, None
