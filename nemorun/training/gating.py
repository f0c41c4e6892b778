"""silu(gate) x up, and its gradient, each in one pass over memory.

torch.compile makes one kernel of the gradient, too, but one that works out both of its halves at every place
and takes one: a third slower than memory allows. So GPUs run a kernel of ours in training. Elsewhere plain
operators do the same, which a compiler can join to what is around them.

Shapes: T (rows) and F (channels).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nemorun.training.compiling import HAS_TRITON


def gated(both: Tensor, block: int) -> Tensor:
    """[..., 2 F] -> [..., F]: silu(gate) x up, where gates and ups stand in turns of `block` channels."""
    if both.is_cuda and HAS_TRITON and both.requires_grad:
        return _gate(both.flatten(0, -2), block).view(*both.shape[:-1], -1)
    return _plain(both, block)


def _plain(both: Tensor, block: int) -> Tensor:
    gate, up = _halves(both, block)
    return (F.silu(gate) * up).flatten(-2)


def _halves(both: Tensor, block: int) -> tuple[Tensor, ...]:
    """Gates and ups, each [..., F / block, block]."""
    return both.unflatten(-1, (-1, 2, block)).unbind(-2)


@torch.library.custom_op("nemorun::gate", mutates_args=())
def _gate(both: Tensor, block: int) -> Tensor:
    if not both.is_cuda:
        return _plain(both, block)
    from nemorun.training import kernels

    return kernels.gate(both.contiguous(), block)


@_gate.register_fake
def _(both: Tensor, block: int) -> Tensor:
    return both.new_empty(both.shape[0], both.shape[1] // 2)


@torch.library.custom_op("nemorun::gate_backward", mutates_args=())
def _gate_backward(both: Tensor, grad: Tensor, block: int) -> Tensor:
    if not both.is_cuda:
        gate, up = _halves(both, block)
        grad = grad.unflatten(-1, (-1, block))
        of_gate = torch.ops.aten.silu_backward(grad * up, gate)
        return torch.stack((of_gate, grad * F.silu(gate)), dim=-2).flatten(-3)
    from nemorun.training import kernels

    return kernels.gate_backward(both.contiguous(), grad.contiguous(), block)


@_gate_backward.register_fake
def _(both: Tensor, grad: Tensor, block: int) -> Tensor:
    return both.new_empty(both.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    both, ctx.block = inputs
    ctx.save_for_backward(both)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (both,) = ctx.saved_tensors
    return _gate_backward(both, grad, ctx.block), None


_gate.register_autograd(_backward, setup_context=_keep)
