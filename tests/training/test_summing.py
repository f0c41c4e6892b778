"""Gradients that are added up whole and exchanged once a step are the same gradients."""

from __future__ import annotations

import shutil
from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard import _fsdp_param_group

from nemorun.llm import GPTConfig, GPTModel
from nemorun.llm.config import LoraConfig
from nemorun.training import ParallelismConfig, TrainerConfig, parallel, summing
from nemorun.training.batch import Inputs
from nemorun.training.distributed import Ranks, join
from nemorun.training.fp8 import QuantizedOnceAStep
from nemorun.training.layout import Layout
from nemorun.training.optimizer import part
from nemorun.training.pipeline import OnePiece
from nemorun.training.summing import WholeSums
from tests.training.forks import Forks

SHAPE = GPTConfig(hidden_size=32, num_layers=2, num_attention_heads=4, seq_length=16, vocab_size=64)
ADAPTED = replace(SHAPE, lora=LoraConfig(enabled=True, rank=4))


def after_two_steps(
    ranks: Ranks, shape: GPTConfig, config: TrainerConfig, parallelism: ParallelismConfig, whole: bool
) -> tuple[int, dict[str, torch.Tensor]]:
    """How often gradients were exchanged in the second of two steps of three micro-batches, and the weights
    after it."""
    torch.manual_seed(0)
    (model,) = parallel.parallelize(GPTModel(shape), config, Layout(config, parallelism, ranks))
    assert isinstance(model, FSDPModule)
    trained = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for p in trained:  # adapters begin with zeros, which give others no gradient
            part(p).add_(0.01)
    update = torch.optim.SGD(trained, lr=0.1)
    quantized = QuantizedOnceAStep(model) if whole and config.precision == "fp8-mixed" else None
    passes = OnePiece(model, keeps_gathered=True, sums=WholeSums(model) if whole else None)
    tokens = torch.arange(16)[None] + ranks.rank
    batches = [(tokens + number, Inputs(labels=tokens)) for number in range(3)]
    for _ in range(2):
        by_fsdp, by_us = _fsdp_param_group.foreach_reduce, summing._reduce_scatter
        with (
            mock.patch.object(_fsdp_param_group, "foreach_reduce", wraps=by_fsdp) as often,
            mock.patch.object(summing, "_reduce_scatter", wraps=by_us) as once,
        ):
            passes.train(batches, 1 / 48)
        update.step()
        update.zero_grad()
        if quantized:
            quantized.expire()
    exchanges = once.call_count if whole else often.call_count
    if whole:
        assert often.call_count == 0
    return exchanges, {name: part(p.detach()) for name, p in model.named_parameters() if p.requires_grad}


def compare(
    devices: int,
    shape: GPTConfig = SHAPE,
    tolerance: float = 1e-6,
    replicate: int = 1,
    compiles: bool = False,
    **trainer: object,
) -> None:
    settings = {"precision": "fp32", "reshard_after_forward": False, **trainer}
    config = TrainerConfig(accelerator="cpu", devices=devices, **settings)  # type: ignore[arg-type]
    parallelism = ParallelismConfig(replicate=replicate)
    with join(config) as ranks:
        _, plain = after_two_steps(ranks, shape, config, parallelism, whole=False)
        config = replace(config, compile=compiles)
        exchanges, summed = after_two_steps(ranks, shape, config, parallelism, whole=True)
    if devices > replicate and config.strategy == "fsdp":
        assert exchanges == len(plain)  # one for each parameter
    moved = 0.0
    for name, value in plain.items():
        torch.testing.assert_close(summed[name], value, rtol=tolerance, atol=tolerance, msg=name)
        moved += float(value.abs().sum())
    assert moved > 0


def adapters() -> None:
    compare(2, ADAPTED)


def uneven() -> None:
    compare(3)


def replicas() -> None:
    compare(4, replicate=2)


def copies() -> None:
    compare(2, strategy="ddp")


def in_bfloat16() -> None:
    compare(2, precision="bf16-mixed", recompute="selective", tolerance=3e-4)


def in_float8() -> None:
    compare(2, precision="fp8-mixed", recompute="selective", tolerance=3e-4)


def compiled() -> None:
    compare(2, replace(SHAPE, num_layers=1), 1e-5, recompute="selective", compiles=True)


@pytest.mark.parametrize(
    "ranks, way", [(2, adapters), (3, uneven), (4, replicas), (2, copies), (2, in_bfloat16), (2, in_float8)]
)
def test_sums_exchanged_once_are_the_sums(ranks: int, way: object, forks: Forks) -> None:
    forks.check(way, ranks)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_blocks_add_to_sums(forks: Forks) -> None:
    forks.check(compiled, 2)
