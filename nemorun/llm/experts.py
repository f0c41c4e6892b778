"""A mixture of experts, as in Mixtral (Jiang et al. 2024): each token goes through k of them.

Shapes are written with B (sequences), S (tokens), N (B x S), D (hidden), F (feed-forward width), E (experts),
k (experts of a token) and T (rows that experts work on; N x k where all experts are here).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from nemorun.llm.balance import attach, balance_loss
from nemorun.llm.config import GPTConfig
from nemorun.training.exchange import exchange_rows, take_rows
from nemorun.training.gating import gated
from nemorun.training.grouped import grouped_product
from nemorun.training.tensor_parallel import local


class Router(nn.Module):
    """How well each token suits each expert: [B, S, D] -> logits [B, S, E] in float32."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.tensor_group: dist.ProcessGroup | None = None
        """The ranks that divide each expert: the gradient of what they return is a part of a sum on each."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.float(), local(self.weight, sum_over=self.tensor_group).float())


class Experts(nn.Module):
    """Router and gated (SwiGLU) experts: [B, S, D] -> [B, S, D]. No token is dropped.

    The loss that balances the load joins the gradient inside (`nemorun.llm.balance`), in training, once
    `begin_step` has said by how much.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.experts_per_token = config.experts_per_token
        self.block = config.gate_block
        self.aux_loss_coeff = config.aux_loss_coeff
        self.num_experts = config.num_experts
        self.router = Router(config)
        # The rows of each expert stand in blocks: some gates, then the same channels' other factors.
        self.gate_up = nn.Parameter(torch.empty(config.num_experts, 2 * config.ffn_size, config.hidden_size))
        self.down = nn.Parameter(torch.empty(config.num_experts, config.hidden_size, config.ffn_size))

        self.expert_group: dist.ProcessGroup | None = None
        """The ranks that divide the experts (dimension 0 of gate_up and down) and send each other tokens. An
        expert's gradient is the sum over the tokens of all of them."""
        self.tensor_ranks = 1
        """The ranks that divide each expert (dimension 1 of gate_up, 2 of down) and get the same x. What each
        returns is a part of a sum, and so is its gradient of x."""
        self.context_group: dist.ProcessGroup | None = None
        """The ranks that divide each sequence."""
        # Plain tensors, no buffers: a model made on the meta device would get them without values.
        self._scale: Tensor | None = None
        self._sums: Tensor | None = None

    def begin_step(self, scale: Tensor) -> None:
        """Weigh each token's balance loss by `scale`, as its other loss, and count from zero.

        `scale` is a scalar, 1 / (tokens of the global batch, without padding), on the weights' device.
        """
        if self._scale is None or self._sums is None:
            self._scale = torch.empty((), device=scale.device)
            self._sums = torch.empty(1 + self.num_experts, device=scale.device)
        self._scale.copy_(scale)
        self._sums.zero_()

    @property
    def aux_loss(self) -> Tensor:
        """The balance losses of this rank's tokens since `begin_step`, without scale and coefficient.

        Summed over all ranks and times `scale`, it is the mean: k where the load is even.
        """
        return torch.zeros(()) if self._sums is None else self._sums[0]

    @property
    def expert_tokens(self) -> Tensor:
        """Of this rank's tokens, how many went to each expert since `begin_step` [E]; to be summed, too."""
        return torch.zeros(self.num_experts) if self._sums is None else self._sums[1:]

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """`padding` [B, S] bool: what is left out of the balance. None: nothing."""
        logits = self.router(x)
        scores, chosen = logits.topk(self.experts_per_token, dim=-1)
        weights = scores.softmax(-1)
        if self._scale is not None and self._sums is not None and self.training:
            loss, tokens = balance_loss(logits, chosen, padding, self.context_group)
            # Every tensor-parallel rank has the whole loss, and its gradient is to be a part of a sum.
            share = 1 / self.tensor_ranks
            statistics = torch.cat((loss.detach()[None], tokens)) * share
            factor = self._scale * (self.aux_loss_coeff * share)
            weights = attach(weights, loss, factor, statistics, self._sums)
        return self._mixed(x, chosen, weights)

    def _mixed(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """x [B, S, D], chosen and weights [B, S, k] -> weighted sums of the experts' outputs [B, S, D]."""
        order, places = _sorted(chosen.flatten())
        rows = take_rows(x.flatten(0, 1), order // self.experts_per_token, places)
        counts = _counts(chosen, self.num_experts)
        if self.expert_group is None:
            rows = self._worked(rows, counts)
        else:
            rows = self._worked_elsewhere(rows, counts, self.expert_group)
        outputs = take_rows(rows, places, order).view(*chosen.shape, x.shape[-1])
        return (outputs * weights[..., None]).sum(2).to(x.dtype)

    def _worked(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Rows [T, D] through the experts that are here: the first counts[0] through the first, and so on."""
        ends = counts.cumsum(0).to(torch.int32)
        both = grouped_product(rows, local(self.gate_up).to(rows.dtype), ends)
        return grouped_product(gated(both, self.block), local(self.down).to(rows.dtype), ends)

    @torch.compiler.disable  # how many rows come is known only when they do
    def _worked_elsewhere(self, rows: Tensor, counts: Tensor, group: dist.ProcessGroup) -> Tensor:
        """Rows [T, D] in the order of all experts, counts [E] for each, to the experts' ranks and back."""
        here = counts.view(group.size(), -1)
        coming = torch.empty_like(here)
        """[ranks, E / ranks]: the rows that each rank sends to each expert here."""
        dist.all_to_all_single(coming, here, group=group)
        send, receive = torch.stack((here.sum(1), coming.sum(1))).tolist()

        rows = exchange_rows(rows, send, receive, group)
        experts = torch.arange(here.shape[1], device=rows.device).repeat(group.size())
        order, places = _sorted(experts.repeat_interleave(coming.flatten(), output_size=sum(receive)))
        rows = self._worked(take_rows(rows, order, places), coming.sum(0))
        return exchange_rows(take_rows(rows, places, order), receive, send, group)


def _sorted(experts: Tensor) -> tuple[Tensor, Tensor]:
    """The order that puts rows of one expert together, and the place that each row gets."""
    order = experts.argsort(stable=True)
    return order, order.argsort()


def _counts(chosen: Tensor, experts: int) -> Tensor:
    """How often each expert is chosen [E], without waiting for the device as torch.bincount does."""
    return (chosen.reshape(-1, 1) == torch.arange(experts, device=chosen.device)).sum(0)
