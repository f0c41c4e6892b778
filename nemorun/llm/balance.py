"""The loss that keeps the experts' load even, and how it joins the gradient without leaving its layer.

It is that of Switch Transformer (Fedus et al. 2021, eq. 4 to 6) for k experts per token, as Hugging Face's
`load_balancing_loss_func` has it: E x sum over e of f_e P_e, where f_e is the share of the tokens that go to
expert e (among others), and P_e the mean probability that the router gives e. Where the load is even it is k.
It is taken over each sequence (as in DeepSeek-V3, section 2.1.2) and not over a micro-batch: a sequence is
the same under every layout, whatever stands beside it. Sequences count by their tokens.

P_e is a mean over tokens and f_e has no gradient, so that the loss of a sequence, times its tokens, is

    sum over its tokens of l(token),    l = E x sum over e of f_e p_e

with the token's own probabilities p. Ranks that divide a sequence thus exchange f alone, and each adds up its
own tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import Tensor


def balance_loss(
    logits: Tensor, chosen: Tensor, padding: Tensor | None = None, group: dist.ProcessGroup | None = None
) -> tuple[Tensor, Tensor]:
    """The sum of l over this rank's tokens.

    Args:
        logits: [B, S, E] of the router, float32.
        chosen: [B, S, k], the experts of each token.
        padding: [B, S] bool; where it is True, nothing is counted. None: no padding.
        group: The ranks that hold the other parts of the same sequences.

    Returns:
        The sum, float32, and how many of the tokens each expert got [E], float32.
    """
    experts = logits.shape[-1]
    present = torch.ones_like(logits[..., 0]) if padding is None else (~padding).to(logits.dtype)
    # Compared and added up: counting by torch.bincount would wait for the device.
    hits = (chosen.unsqueeze(-1) == torch.arange(experts, device=chosen.device)).sum(-2) * present[..., None]
    totals = torch.cat((hits.sum(1), present.sum(1, keepdim=True)), dim=1)
    own = totals[:, :-1].sum(0)
    if group is not None:
        totals = funcol.wait_tensor(funcol.all_reduce(totals, "sum", group))
    share = totals[:, :-1] / totals[:, -1:].clamp(min=1)
    return experts * (logits.softmax(-1) * (share[:, None] * present[..., None])).sum(), own


def attach(y: Tensor, loss: Tensor, factor: Tensor, statistics: Tensor, sums: Tensor) -> Tensor:
    """`y` as it is; in its backward pass `factor` x `loss` joins what is differentiated.

    So the loss need not travel to the end of the model, past pipeline stages (Megatron-LM's
    MoEAuxLossAutoScaler does the same). `statistics` are added to `sums` in the backward pass, too: that runs
    once, while recomputation runs the forward pass twice. What is only evaluated is not counted.
    """
    return _Attach.apply(y, loss, factor, statistics, sums)


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, y: Tensor, loss: Tensor, factor: Tensor, statistics: Tensor, sums: Tensor
    ) -> Tensor:
        ctx.save_for_backward(factor, statistics)
        # Not among the saved: another micro-batch's backward pass may change them first.
        ctx.sums = sums
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        factor, statistics = ctx.saved_tensors
        ctx.sums.add_(statistics)
        return grad, factor, None, None, None
