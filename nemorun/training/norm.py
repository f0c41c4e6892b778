"""RMSNorm, and its gradient together with that of what it stands beside, each in one pass over memory.

torch.compile reads a row twice to normalise it, and makes two kernels of the gradient: one that goes through
the rows, for what is normalised, and another through the columns, for the weight. Where the weight is
trained, GPUs run kernels of ours; that of the gradient also adds what comes to x from elsewhere. Without
them, plain operators do the same.

Shapes: T (rows) and D (channels).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nemorun.training.compiling import HAS_TRITON


def norm_beside(x: Tensor, weight: Tensor, eps: float, total: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x [..., D] as it is, and RMSNorm of it: the gradients of both come to x in one pass.

    On GPUs the weight's gradient is added to `total` [D] (float32), where there is one.
    """
    if x.is_cuda and HAS_TRITON and x.requires_grad and weight.requires_grad:
        same, normed = _NormBeside.apply(x, weight, eps, total)
        return same, normed
    return x, F.rms_norm(x, weight.shape, weight, eps)


class _NormBeside(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, eps: float, total: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        normed, scale = norm(x.flatten(0, -2), weight, eps)
        ctx.save_for_backward(x, weight, scale, total)
        return x.view_as(x), normed.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale, total = ctx.saved_tensors
        given = (grad.flatten(0, -2), x.flatten(0, -2), grad_x.flatten(0, -2), weight, scale)
        if total is None:
            result, of_weight = norm_backward(*given)
        else:
            result, of_weight = summed_norm_backward(*given, total), None
        return result.view_as(x), of_weight, None, None


@torch.library.custom_op("nemorun::norm", mutates_args=())
def norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x [T, D] scale weight [D], and the scale [T]: 1 over the root of each row's mean square, in float32."""
    if not (x.is_cuda and HAS_TRITON):
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1) + eps)
        return (wide * scale[:, None] * weight.float()).to(x.dtype), scale
    from nemorun.training import kernels

    return kernels.norm(x.contiguous(), weight, eps)


@norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(len(x), dtype=torch.float32)


@torch.library.custom_op("nemorun::norm_backward", mutates_args=())
def norm_backward(
    grad: Tensor, x: Tensor, also: Tensor, weight: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the weight [D], from that of x scale weight; `also` is added to the first.

    grad, x, also: [T, D]. scale: [T], as `norm` gives it.
    """
    of_weight = torch.empty_like(weight)
    return _backward(grad, x, also, weight, scale, of_weight, adds=False), of_weight


@norm_backward.register_fake
def _(grad: Tensor, x: Tensor, also: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), torch.empty_like(weight)


@torch.library.custom_op("nemorun::summed_norm_backward", mutates_args=("total",))
def summed_norm_backward(
    grad: Tensor, x: Tensor, also: Tensor, weight: Tensor, scale: Tensor, total: Tensor
) -> Tensor:
    """The same, but the weight's gradient is added to `total` [D] in float32."""
    return _backward(grad, x, also, weight, scale, total, adds=True)


@summed_norm_backward.register_fake
def _(grad: Tensor, x: Tensor, also: Tensor, weight: Tensor, scale: Tensor, total: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _backward(
    grad: Tensor, x: Tensor, also: Tensor, weight: Tensor, scale: Tensor, of_weight: Tensor, adds: bool
) -> Tensor:
    """The gradient of x; the weight's is written to `of_weight`, or added to it."""
    if x.is_cuda and HAS_TRITON:
        from nemorun.training import kernels

        grad, x, also = grad.contiguous(), x.contiguous(), also.contiguous()
        return kernels.norm_backward(grad, x, also, weight, scale, of_weight, adds)
    normed, wide = x.float() * scale[:, None], grad.float()
    of_normed = wide * weight.float()
    along = (of_normed * normed).mean(-1, keepdim=True)
    sums = (wide * normed).sum(0)
    of_weight.copy_(of_weight + sums if adds else sums)
    return ((of_normed - normed * along) * scale[:, None] + also.float()).to(x.dtype)
