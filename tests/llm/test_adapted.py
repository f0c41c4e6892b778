"""A matrix with adapters is the plain formula's, in values and in gradients."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nemorun.llm.config import LoraConfig
from nemorun.llm.layers import Linear

HEADS = (0, 0, 1, 2)
ROWS = torch.tensor(HEADS).repeat_interleave(3).repeat(2)
"""Whose each row is: two groups of two queries, a key and a value, three channels wide."""
NAMES = ("q_proj", "k_proj", "v_proj")


def qkv(**lora: Any) -> Linear:
    found = Linear(8, len(ROWS), NAMES, LoraConfig(enabled=True, rank=2, alpha=6.0, **lora), HEADS, unit=3)
    generator = torch.Generator().manual_seed(0)
    for parameter in found.parameters():
        parameter.data.normal_(generator=generator)
    return found


def plain(layer: Linear, x: Tensor, targets: tuple[str, ...]) -> Tensor:
    """W x + (alpha / rank) B A x, one target after the other."""
    y = F.linear(x, layer.weight)
    for number, name in enumerate(NAMES):
        if name in targets:
            a = layer.lora_a[2 * number : 2 * number + 2]
            b = torch.where(ROWS[:, None] == number, layer.lora_b, 0.0)
            y = y + 3.0 * F.linear(F.linear(F.dropout(x, layer.lora.dropout), a), b)
    return y


@pytest.mark.parametrize(
    ("targets", "dropout"), [(NAMES, 0.0), (("q_proj", "v_proj"), 0.0), (("k_proj",), 0.5)]
)
def test_an_adapted_matrix_equals_the_plain_formula(targets: Any, dropout: float) -> None:
    layer = qkv(targets=targets, dropout=dropout)
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    grad = torch.randn(2, 5, len(ROWS), generator=torch.Generator().manual_seed(2))
    found = []
    for formula in (layer, lambda x: plain(layer, x, targets)):
        torch.manual_seed(3)  # dropout's
        y = formula(x)
        found.append((y, *torch.autograd.grad(y, (x, layer.lora_a, layer.lora_b), grad)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    unadapted = [number for number, name in enumerate(NAMES) if name not in targets]
    for number in unadapted:
        assert not found[0][2][2 * number : 2 * number + 2].any()
        assert not found[0][3][number == ROWS].any()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_an_adapted_matrix_is_compiled_whole() -> None:
    layer = qkv(targets=("q_proj", "v_proj"))
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    found = []
    for formula in (layer, torch.compile(layer, fullgraph=True)):
        y = formula(x)
        found.append((y, *torch.autograd.grad(y.square().sum(), (x, layer.lora_a, layer.lora_b))))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
