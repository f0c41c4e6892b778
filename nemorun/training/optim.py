"""AdamW with decay on matrices only, the learning rate of each step, and clipping by the gradient's norm."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from nemorun.training.config import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def learning_rate(step: int, config: OptimConfig, max_steps: int) -> float:
    """The rate of step `step`, counted from 1. Pure, so that a resumed run needs no scheduler state."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    lowest = config.lr / 10 if config.min_lr is None else config.min_lr
    done = (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps)
    return lowest + (config.lr - lowest) * (1 + math.cos(math.pi * min(1.0, done))) / 2


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale the gradients to a common norm of at most `limit` (0: leave them); returns the norm before.

    The norm is that of the whole gradient: the squares of sharded parameters are summed over the ranks.
    """
    parameters = list(parameters)
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    if limit:
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm
