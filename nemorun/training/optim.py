"""Which parameters are optimized how, the learning rate of each step, and the norm of the whole gradient."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Shard

from nemorun.training.config import OptimConfig
from nemorun.training.model import TrainableModel
from nemorun.training.optimizer import Optimizer, part


def build_optimizer(models: Iterable[TrainableModel], config: OptimConfig) -> Optimizer:
    """Matrices and embeddings decay, norms do not; with Muon the matrices of blocks are orthogonalised."""
    decayed, others, orthogonal = [], [], []
    for model in models:
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if parameter.ndim <= 1:
                others.append(parameter)
            elif config.optimizer == "muon" and name.startswith("blocks."):
                orthogonal.append(parameter)
            else:
                decayed.append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
        {"params": orthogonal, "weight_decay": config.weight_decay, "orthogonal": True},
    ]
    return Optimizer([group for group in groups if group["params"]], config)


def learning_rate(step: int, config: OptimConfig, max_steps: int) -> float:
    """The rate of step `step`, counted from 1. Pure, so that a resumed run needs no scheduler state."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    lowest = config.lr / 10 if config.min_lr is None else config.min_lr
    done = (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps)
    return lowest + (config.lr - lowest) * (1 + math.cos(math.pi * min(1.0, done))) / 2


@torch.no_grad()
def gradient_norm(parameters: Iterable[nn.Parameter], ranks_of_a_stage: int, device: torch.device) -> Tensor:
    """The norm of the whole gradient, the same on every rank. Every rank must call it.

    Each rank adds the squares of its own parts, divided by how many of the ranks that hold the same layers
    (`ranks_of_a_stage`) hold that part as well. So the sum over all ranks counts each part once, whatever
    divides or copies it.
    """
    by_copies: dict[int, list[Tensor]] = {}
    for p in parameters:
        if p.grad is not None:
            by_copies.setdefault(ranks_of_a_stage // _parts(p), []).append(part(p.grad))
    total = torch.zeros((), device=device)
    for copies, gradients in by_copies.items():
        norms = torch.stack(torch._foreach_norm(gradients))
        total += norms.float().square().sum() / copies
    dist.all_reduce(total)
    return total.sqrt()


def _parts(parameter: Tensor) -> int:
    """Into how many different parts the ranks divide a parameter."""
    if not isinstance(parameter, DTensor):
        return 1
    mesh, placements = parameter.device_mesh, parameter.placements
    return math.prod(
        mesh.size(dim) for dim, place in enumerate(placements) if place.is_shard() or _strided(place)
    )


def _strided(placement: Any) -> bool:
    """torch's private kind of Shard for a dimension that two kinds of parallelism divide."""
    return not isinstance(placement, Shard) and type(placement).__name__ == "_StridedShard"
