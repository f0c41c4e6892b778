"""A pipeline that takes its micro-batches in rounds learns what it does with all of them at once."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch

from nemorun.llm import GPTConfig, GPTModel
from nemorun.training import ParallelismConfig, TrainerConfig, config
from nemorun.training.batch import Inputs
from nemorun.training.distributed import Ranks, join
from nemorun.training.layout import Layout
from nemorun.training.optimizer import part
from nemorun.training.parallel import parallelize
from nemorun.training.pipeline import Pipeline
from tests.training.forks import Forks

SHAPE = GPTConfig(hidden_size=32, num_layers=4, num_attention_heads=4, seq_length=16, vocab_size=64)


def learned(
    ranks: Ranks, trainer: TrainerConfig, kinds: dict[str, Any]
) -> tuple[int, dict[str, torch.Tensor]]:
    """How often the schedule ran for 8 micro-batches, and their losses and gradients."""
    layout = Layout(trainer, ParallelismConfig(pipeline_parallel=2, **kinds), ranks)
    passes = Pipeline(parallelize(GPTModel(SHAPE), trainer, layout), layout)
    with mock.patch.object(passes, "_round", wraps=passes._round) as rounds:
        tokens = [(torch.arange(16)[None] + 3 * number) % 64 for number in range(layout.data_rank, 16, 2)][:8]
        loss = passes.train([(row, Inputs(row)) for row in tokens], 0.01)
        pieces = [holder.model for holder in passes.holders]
        found = {name: part(p.grad).clone() for piece in pieces for name, p in piece.named_parameters()}
        evaluated = passes.evaluate([(row, Inputs(row)) for row in tokens])
    return rounds.call_count // 2, found | {"loss": loss, "evaluated": evaluated}


def both_ways(world: int, kinds: dict[str, Any]) -> None:
    trainer = TrainerConfig(accelerator="cpu", devices=world, precision="fp32")
    with join(trainer) as ranks:
        count, whole = learned(ranks, trainer, kinds)
        assert count == 1
        with mock.patch.object(config, "_EMPTY", 1.0):
            count, in_rounds = learned(ranks, trainer, kinds)
        assert count == 4
    assert whole.keys() == in_rounds.keys() and any(value.any() for value in whole.values())
    for name, value in whole.items():
        torch.testing.assert_close(in_rounds[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("world", "kinds"),
    [
        (2, {}),
        (2, {"virtual_pipeline": 2}),
        (2, {"virtual_pipeline": 2, "pipeline_schedule": "zero-bubble"}),
        (4, {}),
    ],
)
def test_rounds_change_nothing(forks: Forks, world: int, kinds: dict[str, Any]) -> None:
    forks.check(both_ways, world, world, kinds)


@pytest.mark.parametrize(
    ("stages", "pieces", "micro_batches", "size"),
    [(4, 5, 512, 16), (4, 1, 512, 64), (4, 1, 148, 148), (4, 1, 40, 40), (2, 2, 8, 8), (8, 12, 96, 16)],
)
def test_a_round_is_the_shortest_that_keeps_the_pipeline_full(
    stages: int, pieces: int, micro_batches: int, size: int
) -> None:
    kinds = ParallelismConfig(pipeline_parallel=stages, virtual_pipeline=pieces)
    assert kinds.round_size(micro_batches) == size
