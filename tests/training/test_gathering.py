"""Weights that are gathered ahead of their use are the same weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard import _fsdp_param_group

from nemorun.llm import GPTConfig, GPTModel
from nemorun.training import ParallelismConfig, TrainerConfig, parallel
from nemorun.training.batch import Inputs
from nemorun.training.distributed import Ranks, join
from nemorun.training.layout import Layout
from nemorun.training.optimizer import part
from nemorun.training.pipeline import OnePiece
from tests.training.forks import Forks

SHAPE = GPTConfig(hidden_size=32, num_layers=3, num_attention_heads=4, seq_length=16, vocab_size=64)


def gradients(ranks: Ranks, config: TrainerConfig, ahead: bool) -> dict[str, torch.Tensor]:
    """Loss and gradients of the second pass, with units that are freed between their uses, as on GPUs."""
    layout = Layout(config, ParallelismConfig(), ranks)
    with contextlib.nullcontext() if ahead else mock.patch.object(parallel, "_gather_ahead"):
        (model,) = parallel.parallelize(GPTModel(SHAPE), config, layout)
    assert isinstance(model, FSDPModule)
    model.set_reshard_after_forward(True)
    tokens = torch.arange(16)[None] + ranks.rank
    for _ in range(2):
        model.zero_grad()
        loss = model(tokens, Inputs(labels=tokens))
        loss.backward()
    found = {name: part(p.grad) for name, p in model.named_parameters()}
    return found | {"loss": loss.detach()}


def _noting(name: str, orders: list[str]) -> Callable[..., None]:
    original = getattr(FSDPModule, name)

    def note(*args: Any) -> None:
        orders.append(name)
        original(*args)

    return note


def both_ways() -> None:
    config = TrainerConfig(accelerator="cpu", devices=2)
    with join(config) as ranks:
        orders: list[str] = []
        with contextlib.ExitStack() as noted:
            for name in ("set_modules_to_forward_prefetch", "set_modules_to_backward_prefetch"):
                noted.enter_context(mock.patch.object(FSDPModule, name, _noting(name, orders)))
            ahead = gradients(ranks, config, ahead=True)
        # forward: all of embedding, three blocks and head but the first; backward: two of the blocks
        assert sorted(orders) == sorted(
            ["set_modules_to_forward_prefetch"] * 4 + ["set_modules_to_backward_prefetch"] * 2
        )
        plain = gradients(ranks, config, ahead=False)
    assert plain.keys() == ahead.keys()
    for name, value in plain.items():
        assert torch.equal(value, ahead[name]), name


def after_two_steps(ranks: Ranks, keeps_gathered: bool) -> tuple[int, dict[str, torch.Tensor]]:
    """Gatherings in the second of two steps of three micro-batches, and the weights after it."""
    config = TrainerConfig(accelerator="cpu", devices=2, reshard_after_forward=not keeps_gathered)
    (model,) = parallel.parallelize(GPTModel(SHAPE), config, Layout(config, ParallelismConfig(), ranks))
    assert isinstance(model, FSDPModule)
    model.set_reshard_after_forward(not keeps_gathered)  # as on GPUs
    update = torch.optim.SGD(model.parameters(), lr=0.1)
    passes = OnePiece(model, keeps_gathered)
    tokens = torch.arange(16)[None] + ranks.rank
    batches = [(tokens + number, Inputs(labels=tokens)) for number in range(3)]
    for _ in range(2):
        gather = _fsdp_param_group.foreach_all_gather
        with mock.patch.object(_fsdp_param_group, "foreach_all_gather", wraps=gather) as gathered:
            passes.train(batches, 1.0)
        update.step()
        update.zero_grad()
    return gathered.call_count, {name: part(p.detach()) for name, p in model.named_parameters()}


def once_a_step() -> None:
    with join(TrainerConfig(accelerator="cpu", devices=2)) as ranks:
        often, plain = after_two_steps(ranks, keeps_gathered=False)
        once, kept = after_two_steps(ranks, keeps_gathered=True)
    # embedding, three blocks and head; else with each of three micro-batches, forward and backward
    assert (once, often) == (5, 30)
    for name, value in plain.items():
        assert torch.equal(value, kept[name]), name


def test_kept_weights_are_gathered_once_a_step(forks: Forks) -> None:
    forks.check(once_a_step, 2)


def test_gathering_ahead_changes_no_bit(forks: Forks) -> None:
    forks.check(both_ways, 2)
