"""AdamW and Muon against what they are said to be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nemorun.llm import GPTConfig, GPTModel
from nemorun.training import OptimConfig
from nemorun.training.optim import build_optimizer
from nemorun.training.optimizer import Optimizer, orthogonalised


def model() -> GPTModel:
    return GPTModel(
        GPTConfig(hidden_size=16, num_layers=1, num_attention_heads=2, seq_length=8, vocab_size=257)
    ).materialize()


def gradients(parameters: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def train(steps: int = 3, divisor: float = 1.0, **settings: Any) -> dict[str, Tensor]:
    ours = model()
    optimizer = build_optimizer([ours], OptimConfig(lr=1e-2, weight_decay=0.3, eps=1e-8, **settings))
    for step in range(steps):
        gradients(list(ours.parameters()), step)
        optimizer.step(divisor=torch.tensor(divisor))
    return {name: p.detach() for name, p in ours.named_parameters()}


def as_torch_does_it(steps: int = 3, divisor: float = 1.0) -> dict[str, Tensor]:
    theirs = model()
    parameters = list(theirs.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.3},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    for step in range(steps):
        gradients(parameters, step)
        for p in parameters:
            assert p.grad is not None
            p.grad /= divisor
        optimizer.step()
    return {name: p.detach() for name, p in theirs.named_parameters()}


@pytest.mark.parametrize(("moments", "tolerance"), [("fp32", 1e-6), ("bf16", 2e-3)])
def test_adamw_is_that_of_torch(moments: str, tolerance: float) -> None:
    for divisor in (1.0, 4.0):
        ours, theirs = train(divisor=divisor, moments=moments), as_torch_does_it(divisor=divisor)
        for name in theirs:
            torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=tolerance)


def test_bf16_moments_take_half_the_memory() -> None:
    ours = model()
    optimizer = build_optimizer([ours], OptimConfig(moments="bf16"))
    gradients(list(ours.parameters()), 0)
    optimizer.step()
    states = list(optimizer.state.values())
    assert {s["exp_avg"].dtype for s in states} == {s["exp_avg_sq"].dtype for s in states} == {torch.bfloat16}


@pytest.mark.parametrize(
    "settings", [{}, {"moments": "bf16"}, {"optimizer": "muon"}], ids=["adamw", "bf16 moments", "muon"]
)
def test_a_step_left_out_changes_nothing(settings: dict[str, Any]) -> None:
    def trained(with_a_bad_step: bool) -> list[Tensor]:
        ours = model()
        optimizer = build_optimizer([ours], OptimConfig(lr=1e-2, **settings))
        for step in range(3):
            gradients(list(ours.parameters()), step)
            optimizer.step(skip=torch.tensor(0.0))
            if with_a_bad_step and step == 1:
                for p in ours.parameters():
                    p.grad = torch.full_like(p, torch.nan)
                optimizer.step(divisor=torch.tensor(torch.nan), skip=torch.tensor(1.0))
        return [p.detach() for p in ours.parameters()]

    for left_out, never in zip(trained(True), trained(False), strict=True):
        torch.testing.assert_close(left_out, never, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (2, 8, 24)])
def test_muon_makes_singular_values_nearly_one(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalised(x, steps=10))
    assert ((values > 0.6) & (values < 1.3)).all()


def test_muon_takes_the_matrices_of_blocks_and_adamw_the_rest() -> None:
    ours = model()
    before = {name: p.detach().clone() for name, p in ours.named_parameters()}
    optimizer = build_optimizer([ours], OptimConfig(lr=1e-2, weight_decay=0.0, eps=1e-12, optimizer="muon"))
    gradients(list(ours.parameters()), 0)
    optimizer.step()
    changes = {name: p.detach() - before[name] for name, p in ours.named_parameters()}
    assert isinstance(optimizer, Optimizer)
    # AdamW's first step is the rate times the sign of each gradient.
    for name in ("embedding.weight", "head.weight", "norm.weight"):
        torch.testing.assert_close(
            changes[name].abs(), torch.full_like(changes[name], 1e-2), rtol=1e-3, atol=0
        )
    down = changes["blocks.0.feed_forward.down.weight"]
    values = torch.linalg.svdvals(down / (1e-2 * 0.2 * max(down.shape) ** 0.5))
    assert ((values > 0.6) & (values < 1.3)).all()
