"""A step's forward and backward passes over all micro-batches, with and without a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    Schedule1F1B,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
)

from nemorun.training.batch import Inputs
from nemorun.training.layout import Layout, submesh
from nemorun.training.model import TrainableModel
from nemorun.training.summing import WholeSums

Micro = tuple[Tensor, Inputs]
"""This rank's share of a micro-batch: tokens [B, S] and the rest."""


class Passes(Protocol):
    """Runs micro-batches through the model. Every rank must make each call."""

    def train(self, micro_batches: Sequence[Micro], scale: float) -> Tensor:
        """Add the gradients of `scale` x loss to the weights; returns the sum of the losses, on the ranks
        that hold the end of the model."""

    def evaluate(self, micro_batches: Sequence[Micro]) -> Tensor:
        """The sum of the losses, on the ranks that hold the end of the model."""


class OnePiece:
    """The whole model on each rank, one micro-batch after the other.

    With `keeps_gathered`, weights are gathered once for all micro-batches of a step; with `sums`, which
    wants that, gradients are exchanged once.
    """

    def __init__(
        self, model: TrainableModel, keeps_gathered: bool = False, sums: WholeSums | None = None
    ) -> None:
        self.model = model
        self.keeps_gathered = keeps_gathered
        self.sums = sums

    def train(self, micro_batches: Sequence[Micro], scale: float) -> Tensor:
        total = torch.zeros((), device=micro_batches[0][0].device)
        if self.sums:
            self.sums.clear()
        for number, (tokens, inputs) in enumerate(micro_batches, start=1):
            if isinstance(self.model, FSDPModule):
                # Replicas exchange gradients once; shards with each micro-batch, so that no rank ever holds
                # a whole gradient.
                last = number == len(micro_batches)
                self.model.set_requires_all_reduce(last)
                self.model.set_reshard_after_backward(last or not self.keeps_gathered)
            loss = self.model(tokens, replace(inputs, loss_scale=scale))
            if self.sums:
                self.sums.catch()
            (loss * scale).backward()
            total += loss.detach()
        if self.sums:
            self.sums.exchange()
        return total

    @torch.no_grad()
    def evaluate(self, micro_batches: Sequence[Micro]) -> Tensor:
        return torch.stack([self.model(tokens, inputs) for tokens, inputs in micro_batches]).sum()


class Pipeline:
    """Pieces of the model on ranks in a row, fed with micro-batches by one of torch's schedules."""

    def __init__(self, pieces: Sequence[TrainableModel], layout: Layout) -> None:
        self.layout = layout
        self.holders = [_Stage(piece) for piece in pieces]
        for holder in self.holders:
            if isinstance(holder.model, FSDPModule):
                # The schedule exchanges gradients once a round, after the last micro-batch, if it sees it
                # sharded.
                fully_shard(holder, mesh=submesh(layout.weights, "replicate", "shard"))
        self._schedules: dict[tuple[int, torch.Size], Any] = {}

    def train(self, micro_batches: Sequence[Micro], scale: float) -> Tensor:
        return self._run(micro_batches, scale, "step")

    @torch.no_grad()
    def evaluate(self, micro_batches: Sequence[Micro]) -> Tensor:
        return self._run(micro_batches, None, "eval")

    def _run(self, micro_batches: Sequence[Micro], scale: float | None, call: str) -> Tensor:
        for holder in self.holders:
            holder.scale, holder.total = scale, None
        size = self.layout.parallelism.round_size(len(micro_batches))
        for begin in range(0, len(micro_batches), size):
            self._round(micro_batches[begin : begin + size], call)
        total = self.holders[-1].total
        return torch.zeros((), device=self.layout.ranks.device) if total is None else total

    def _round(self, micro_batches: Sequence[Micro], call: str) -> None:
        for holder in self.holders:
            holder.micro_batches = micro_batches
        schedule = self._schedule(len(micro_batches), micro_batches[0][0].shape)
        number = torch.arange(len(micro_batches))
        first, last = self.holders[0].model.first, self.holders[-1].model.last
        tokens = (torch.cat([tokens for tokens, _ in micro_batches]),) if first else ()
        getattr(schedule, call)(*tokens, target=number if last else None, losses=[], number=number)

    def _schedule(self, count: int, shape: torch.Size) -> Any:
        """The schedule for this many micro-batches of this shape; it keeps its buffers from step to step."""
        if (count, shape) in self._schedules:
            return self._schedules[count, shape]
        layout = self.layout
        number_of_stages = layout.stages * layout.parallelism.virtual_pipeline
        stages: list[Any] = [
            PipelineStage(
                holder,
                layout.stage + place * layout.stages,
                number_of_stages,
                layout.ranks.device,
                input_args=holder.takes(shape),
                output_args=holder.gives(shape),
                group=layout.pipeline_group,
            )
            for place, holder in enumerate(self.holders)
        ]
        # The loss is scaled already, and the pieces' gradients must not be divided by the micro-batches.
        settings: dict[str, Any] = {"loss_fn": lambda loss, _: loss.sum(), "scale_grads": False}
        kind = layout.parallelism.schedule
        schedule: Any
        if kind == "1f1b":
            schedule = Schedule1F1B(stages[0], count, **settings)
        elif kind == "interleaved":
            schedule = ScheduleInterleaved1F1B(stages, count, **settings)
        else:
            schedule = ScheduleInterleavedZeroBubble(stages, count, **settings)
        self._schedules[count, shape] = schedule
        return schedule


class _Stage(nn.Module):
    """A piece as the schedule calls it: by the number of a micro-batch, whose inputs lie ready."""

    def __init__(self, model: TrainableModel) -> None:
        super().__init__()
        self.model = model
        self.micro_batches: Sequence[Micro] = ()
        self.scale: float | None = None
        self.total: Tensor | None = None
        """Sum of the losses so far."""

    def forward(self, x: Tensor, number: Tensor) -> Tensor:
        tokens, inputs = self.micro_batches[int(number)]
        y = self.model(tokens if self.model.first else x, inputs)
        if not self.model.last:
            return y
        loss = y.detach()
        self.total = loss if self.total is None else self.total + loss
        # One dimension: the schedule joins the outputs of all micro-batches. No view: FSDP warns of it.
        return torch.stack((y if self.scale is None else y * self.scale,))

    def takes(self, shape: torch.Size) -> Tensor:
        """Shape and type of what it is given, without values."""
        return (
            torch.empty(shape, dtype=torch.int64, device="meta") if self.model.first else self._hidden(shape)
        )

    def gives(self, shape: torch.Size) -> Tensor:
        return torch.empty(1, device="meta", requires_grad=True) if self.model.last else self._hidden(shape)

    def _hidden(self, shape: torch.Size) -> Tensor:
        return torch.empty(
            self.model.hidden_shape(shape), dtype=self.model.dtype, device="meta", requires_grad=True
        )
