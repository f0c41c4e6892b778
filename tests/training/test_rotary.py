"""Queries, keys and values cut from one product and rotated in one go, beside plain operators."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nemorun.training import rotary
from nemorun.training.rotary import rotate, split_rotated


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def plain(qkv: Tensor, cos: Tensor, sin: Tensor) -> list[Tensor]:
    query = rotate(qkv[..., :-2, :].flatten(2, 3), cos, sin)
    return [query, rotate(qkv[..., -2, :], cos, sin), qkv[..., -1, :]]


@pytest.mark.parametrize("width", [8, 4])  # of the head, or of half of it
@pytest.mark.parametrize("of_each_sequence", [False, True])
def test_parts_and_their_gradient_are_those_of_plain_operators(width: int, of_each_sequence: bool) -> None:
    qkv = drawn(2, 6, 3, 4, 8, seed=1)
    angles = drawn(*((2, 6) if of_each_sequence else (6,)), width // 2, seed=2)
    found = []
    for way in (split_rotated, plain):
        leaf = qkv.clone().requires_grad_()
        parts = way(leaf, angles.cos(), angles.sin())
        assert [part.shape for part in parts] == [(2, 6, 6, 8), (2, 6, 3, 8), (2, 6, 3, 8)]
        sum((part * drawn(*part.shape, seed=3)).sum() for part in parts).backward()  # type: ignore[union-attr]
        found.append([*(part.detach() for part in parts), leaf.grad])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(split_rotated(qkv, angles.cos(), angles.sin()), found[1], strict=False):
        torch.testing.assert_close(ours, theirs)  # without gradients


def test_the_operators_keep_the_rules_of_torchs_compiler() -> None:
    qkv, angles = drawn(2, 6, 3, 4, 8, seed=1), drawn(6, 4, seed=2)
    torch.library.opcheck(rotary._split, (qkv, angles.cos(), angles.sin()))
    parts = [part.contiguous() for part in plain(qkv, angles.cos(), angles.sin())]
    torch.library.opcheck(rotary._join, (*parts, angles.cos(), angles.sin()))
