"""RMSNorm of a sum, and the gradient of both in one pass over memory.

torch.compile makes one kernel that goes through the rows, for the gradient of what is normalised, and another
that goes through the columns, for the weight's. Where the weight is trained, GPUs run a kernel of ours that
does both, and adds the gradient of the sum itself. Elsewhere plain operators do the same.

Shapes: T (rows) and D (channels).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nemorun.training.compiling import HAS_TRITON


def added_norm(x: Tensor, more: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x [..., D] + more, and RMSNorm of that; x itself, and RMSNorm of it, where there is no more."""
    if x.is_cuda and HAS_TRITON and x.requires_grad and weight.requires_grad:
        total, normed = _AddedNorm.apply(x, more, weight, eps)
        return total, normed
    total = x if more is None else x + more
    return total, F.rms_norm(total, weight.shape, weight, eps)


class _AddedNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, more: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        total = x.view_as(x) if more is None else x + more
        wide = total.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        ctx.adds = more is not None
        ctx.save_for_backward(total, weight, scale)
        return total, (wide * scale * weight.float()).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
        total, weight, scale = ctx.saved_tensors
        grad, grad_total = grad.flatten(0, -2), grad_total.flatten(0, -2)
        result, of_weight = norm_backward(grad, total.flatten(0, -2), grad_total, weight, scale.flatten())
        result = result.view_as(total)
        return result, result if ctx.adds else None, of_weight, None


@torch.library.custom_op("nemorun::norm_backward", mutates_args=())
def norm_backward(
    grad: Tensor, x: Tensor, also: Tensor, weight: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the weight [D], from that of x scale weight; `also` is added to the first.

    grad, x, also: [T, D]. scale: [T], 1 over the root of the mean square of each row of x, in float32.
    """
    if not (x.is_cuda and HAS_TRITON):
        normed, wide = x.float() * scale[:, None], grad.float()
        of_normed = wide * weight.float()
        along = (of_normed * normed).mean(-1, keepdim=True)
        result = (of_normed - normed * along) * scale[:, None] + also.float()
        return result.to(x.dtype), (wide * normed).sum(0).to(weight.dtype)
    from nemorun.training import kernels

    grad, x, also = grad.contiguous(), x.contiguous(), also.contiguous()
    result = torch.empty_like(x)
    return result, kernels.norm_backward(grad, x, also, weight, scale, result).to(weight.dtype)


@norm_backward.register_fake
def _(grad: Tensor, x: Tensor, also: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), torch.empty_like(weight)
