"""Gradients of many micro-batches, added up whole on each rank and exchanged once a step.

FSDP exchanges them with each micro-batch, so that a rank holds the sum of its own part only; where there is
room for whole sums, nothing has to be sent, received and copied beside all the products but those of one.
(FSDP can do that, too, by `set_requires_gradient_sync`. But it writes each gradient in the type that is
computed in, reads it again and adds it up in a kernel of its own, which took longer than the exchange.)

The sums are float32. Matrices' products add to them directly; all other gradients are added when they come.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from nemorun.training.optimizer import like, part
from nemorun.training.products import add

_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
"""From torch 2.13 on it has a new name."""


class WholeSums:
    """The sums of a model whose units have been sharded, by ranks that divide nothing else of it."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._sums = [_Sum(p) for p in model.parameters() if p.requires_grad]
        by_parameter = {one.parameter: one for one in self._sums}
        assert isinstance(model, FSDPModule)
        model.set_requires_gradient_sync(False)  # FSDP exchanges nothing
        module: Any
        for module in model.modules():
            if hasattr(module, "weight_sum") and (found := by_parameter.get(module.weight)):
                module.weight_sum = found.whole
        self._catches = False

    def clear(self) -> None:
        """Begin a step."""
        torch._foreach_zero_([one.padded for one in self._sums])

    def catch(self) -> None:
        """To be called while weights are gathered, before their first backward pass."""
        if self._catches:
            return
        gathered = [p for p in self.model.parameters() if p.requires_grad]
        for one, p in zip(self._sums, gathered, strict=True):
            p.register_post_accumulate_grad_hook(partial(_catch, one.whole))
        self._catches = True

    def exchange(self) -> None:
        """Make the parameters' gradients of the ranks' sums, once weights are no longer gathered."""
        for one in self._sums:
            one.exchange()


class _Sum:
    def __init__(self, parameter: nn.Parameter) -> None:
        assert isinstance(parameter, DTensor)
        self.parameter: Any = parameter
        mesh = parameter.device_mesh
        self.shard_group = mesh.get_group("shard")
        self.replicate_group = mesh.get_group("replicate") if mesh.ndim > 1 else None
        ranks = self.shard_group.size()
        rows, *rest = parameter.shape
        self.rows = -(-rows // ranks)
        """Of each rank, as FSDP divides them: the last ranks may have fewer."""
        self.padded = torch.zeros(ranks * self.rows, *rest, device=part(parameter).device)
        self.whole = self.padded[:rows]

    def exchange(self) -> None:
        first = self.shard_group.rank() * self.rows
        own = self.padded[first : first + self.rows]
        if self.shard_group.size() > 1:
            _reduce_scatter(own, self.padded, group=self.shard_group)
        if self.replicate_group is not None and self.replicate_group.size() > 1:
            dist.all_reduce(own, group=self.replicate_group)
        self.parameter.grad = like(self.parameter, own[: len(part(self.parameter))])


def _catch(whole: Tensor, parameter: Tensor) -> None:
    if parameter.grad is not None:
        add(whole, parameter.grad)
        parameter.grad = None
