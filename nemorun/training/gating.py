"""silu(gate) x up, and its gradient, each in one pass over memory.

torch.compile makes one kernel of the gradient, too, but one that works out both of its halves at every place
and takes one: a third slower than memory allows. So GPUs run a kernel of ours in training. Elsewhere plain
operators do the same, which a compiler can join to what is around them.

Where the gate is followed by a matrix that is trained, both are one function: the gradient of the matrix
needs the gate's result, which is made anew in the pass that makes the gate's gradient, not kept.

Two operators also tell the largest magnitudes of what they give, which float8 scales by: it would have to be
read again for that.

Shapes: T (rows), F (channels) and P (places where a part of the work is done, as many as the device likes).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nemorun.training.compiling import HAS_TRITON
from nemorun.training.products import product, weight_gradient

_AT_ONCE = 2048
"""Channels that are worked on at one place."""


def gated(both: Tensor, block: int) -> Tensor:
    """[..., 2 F] -> [..., F]: silu(gate) x up, where gates and ups stand in turns of `block` channels."""
    return _by_kernel(both, block) if both.requires_grad else _plain(both, block)


def gated_linear(
    both: Tensor, weight: Tensor, block: int, total: Tensor | None = None, more: Tensor | None = None
) -> Tensor:
    """both [..., 2 F], weight [O, F] -> (silu(gate) x up) @ weight.T + more [..., O], by one product.

    The weight's gradient is added to `total` [O, F] (float32), where there is one.
    """
    y: Tensor = _GatedLinear.apply(both, weight, block, total, more)
    return y


class _GatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, both: Tensor, weight: Tensor, block: int, total: Tensor | None, more: Tensor | None
    ) -> Tensor:
        ctx.block, ctx.adds = block, more is not None
        ctx.save_for_backward(both, weight, total)
        return product(_by_kernel(both, block), weight, more)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        both, weight, total = ctx.saved_tensors
        flat = grad.flatten(0, -2)
        grad_both, inner = gate_backward_and_gate(both.flatten(0, -2), flat @ weight, ctx.block)
        return (
            grad_both.view_as(both),
            weight_gradient(flat, inner, total),
            None,
            None,
            grad if ctx.adds else None,
        )


def _by_kernel(both: Tensor, block: int) -> Tensor:
    if both.is_cuda and HAS_TRITON:
        return gate(both.flatten(0, -2), block)[0].view(*both.shape[:-1], -1)
    return _plain(both, block)


def _plain(both: Tensor, block: int) -> Tensor:
    gates, ups = _halves(both, block)
    return (F.silu(gates) * ups).flatten(-2)


def _halves(both: Tensor, block: int) -> tuple[Tensor, ...]:
    """Gates and ups, each [..., F / block, block]."""
    return both.unflatten(-1, (-1, 2, block)).unbind(-2)


@torch.library.custom_op("nemorun::gate", mutates_args=())
def gate(both: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """both [T, 2 F] -> silu(gate) x up [T, F], and the largest magnitudes [P] of it in float32."""
    if not (both.is_cuda and HAS_TRITON):
        inner = _plain(both, block)
        return inner, _everywhere(inner, _largest_like(both, block))
    from nemorun.training import kernels

    inner, largest = _inner_like(both), _largest_like(both, block)
    kernels.gate(both.contiguous(), inner, largest, block, _pairs_at_once(block))
    return inner, largest


@gate.register_fake
def _(both: Tensor, block: int) -> tuple[Tensor, Tensor]:
    return _inner_like(both), _largest_like(both, block)


@torch.library.custom_op("nemorun::gate_backward", mutates_args=())
def gate_backward(both: Tensor, grad: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """The gradient [T, 2 F] of `both`, from that of `gate`'s first result; and its largest magnitudes [P]."""
    if not (both.is_cuda and HAS_TRITON):
        gates, ups = _halves(both, block)
        grad = grad.unflatten(-1, (-1, block))
        of_gate = torch.ops.aten.silu_backward(grad * ups, gates)
        result = torch.stack((of_gate, grad * F.silu(gates)), dim=-2).flatten(-3)
        return result, _everywhere(result, _largest_like(both, block))
    from nemorun.training import kernels

    result, largest = both.new_empty(both.shape), _largest_like(both, block)
    kernels.gate_backward(both.contiguous(), grad.contiguous(), result, largest, block, _pairs_at_once(block))
    return result, largest


@gate_backward.register_fake
def _(both: Tensor, grad: Tensor, block: int) -> tuple[Tensor, Tensor]:
    return both.new_empty(both.shape), _largest_like(both, block)


@torch.library.custom_op("nemorun::gate_backward_and_gate", mutates_args=())
def gate_backward_and_gate(both: Tensor, grad: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """The gradient [T, 2 F] of `both`, and silu(gate) x up [T, F] itself."""
    if not (both.is_cuda and HAS_TRITON):
        return gate_backward(both, grad, block)[0], _plain(both, block)
    from nemorun.training import kernels

    result, inner, largest = both.new_empty(both.shape), _inner_like(both), _largest_like(both, block)
    kernels.gate_backward(
        both.contiguous(), grad.contiguous(), result, largest, block, _pairs_at_once(block), inner
    )
    return result, inner


@gate_backward_and_gate.register_fake
def _(both: Tensor, grad: Tensor, block: int) -> tuple[Tensor, Tensor]:
    return both.new_empty(both.shape), _inner_like(both)


def _inner_like(both: Tensor) -> Tensor:
    return both.new_empty(both.shape[0], both.shape[1] // 2)


def _largest_like(both: Tensor, block: int) -> Tensor:
    at_once = block * _pairs_at_once(block)
    return both.new_empty((both.numel() // 2 + at_once - 1) // at_once, dtype=torch.float32)


def _pairs_at_once(block: int) -> int:
    """Pairs of blocks, a gate's and an up's, that are worked on at one place."""
    return max(1, _AT_ONCE // block)


def _everywhere(x: Tensor, largest: Tensor) -> Tensor:
    """Where nothing is divided into places: the same at all of them."""
    return largest.fill_(x.abs().amax() if x.numel() else 0.0)


def _keep(ctx: Any, inputs: tuple[Tensor, int], output: tuple[Tensor, Tensor]) -> None:
    both, ctx.block = inputs
    ctx.save_for_backward(both)


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor, None]:
    (both,) = ctx.saved_tensors
    return gate_backward(both, grad, ctx.block)[0], None


gate.register_autograd(_backward, setup_context=_keep)
