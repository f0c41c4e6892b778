"""Gradients that their owner adds up are those that torch's own reduce-scatter gives in float32."""

from __future__ import annotations

import os
from typing import Any
from unittest import mock

import pytest
import torch
from torch.distributed.fsdp import FSDPModule

from nemorun.llm import GPTConfig, GPTModel
from nemorun.training import ParallelismConfig, TrainerConfig, parallel, reducing
from nemorun.training.batch import Inputs
from nemorun.training.distributed import Ranks, join
from nemorun.training.layout import Layout
from nemorun.training.optimizer import part
from tests.training.forks import Forks


def gradients(ranks: Ranks, config: TrainerConfig, replicate: int) -> dict[str, torch.Tensor]:
    """Loss and gradient sums of the second of two steps of two micro-batches each."""
    shape = GPTConfig(hidden_size=32, num_layers=2, num_attention_heads=4, seq_length=16, vocab_size=65)
    layout = Layout(config, ParallelismConfig(replicate=replicate), ranks)
    (model,) = parallel.parallelize(GPTModel(shape), config, layout)
    assert isinstance(model, FSDPModule)
    for step in range(2):
        model.zero_grad()
        for micro in range(2):
            numbers = torch.Generator().manual_seed(100 * ranks.rank + 10 * step + micro)
            tokens = torch.randint(65, (1, 16), generator=numbers)
            model(tokens, Inputs(labels=tokens)).backward()
    found = {name: part(p.grad).clone() for name, p in model.named_parameters()}
    assert {value.dtype for value in found.values()} == {torch.float32}
    return found


def both_ways(world: int, settings: dict[str, Any], replicate: int) -> None:
    config = TrainerConfig(accelerator="cpu", devices=world, **settings)
    sums: list[torch.Tensor] = []

    def noted(rows: torch.Tensor, total: torch.Tensor) -> None:
        sums.append(rows)
        add_up(rows, total)

    add_up = reducing.add_up
    with join(config) as ranks:
        with mock.patch.object(reducing, "add_up", noted):
            own = gradients(ranks, config, replicate)
        exchanged = replicate < world and config.strategy == "fsdp"
        assert len(sums) == (4 * 4 if exchanged else 0)  # of 4 units: two blocks and the ends
        kind = torch.float32 if config.precision == "fp32" else torch.bfloat16
        assert {rows.dtype for rows in sums} <= {kind}
        with mock.patch.object(parallel, "on_one_node", return_value=False):
            torchs = gradients(ranks, config, replicate)
    for name, value in torchs.items():
        if world == 2:
            assert torch.equal(value, own[name]), name
        else:  # of more than two numbers, the order of the sum matters
            torch.testing.assert_close(own[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("world", "replicate", "strategy", "precision"),
    [
        (2, 1, "fsdp", "fp32"),
        (2, 1, "fsdp", "bf16-mixed"),
        (2, 1, "ddp", "bf16-mixed"),
        (4, 1, "fsdp", "bf16-mixed"),
        (4, 2, "fsdp", "bf16-mixed"),
    ],
)
def test_owners_add_up_the_same(
    forks: Forks, world: int, replicate: int, strategy: str, precision: str
) -> None:
    forks.check(both_ways, world, world, {"precision": precision, "strategy": strategy}, replicate)


def test_a_sum_is_rounded_once() -> None:
    rows = torch.tensor([[256.0, 1.0], [1.0, -1.0], [1.0, 2.0]], dtype=torch.bfloat16)
    reducing.add_up(rows, total := torch.empty(2))
    assert total.tolist() == [258.0, 2.0]  # in bfloat16, 256 + 1 is 256


@pytest.mark.parametrize(("members", "one"), [([0, 1, 2, 3], True), ([4, 6], True), ([3, 4], False)])
def test_ranks_are_numbered_node_by_node(members: list[int], one: bool) -> None:
    with (
        mock.patch.dict(os.environ, LOCAL_WORLD_SIZE="4"),
        mock.patch.object(reducing.dist, "get_process_group_ranks", return_value=members),
        mock.patch.object(reducing.dist, "get_world_size", return_value=8),
    ):
        assert reducing.on_one_node(mock.sentinel.group) is one
