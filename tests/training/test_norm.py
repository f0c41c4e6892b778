"""RMSNorm of a sum with a gradient of its own, beside torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nemorun.training import norm


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def plain(x: Tensor, more: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x if more is None else x + more
    return total, F.rms_norm(total, weight.shape, weight, eps)


@pytest.mark.parametrize("adds", [False, True])
def test_the_sum_its_norm_and_their_gradients_are_torchs(adds: bool) -> None:
    found = []
    for way in (norm._AddedNorm.apply, plain):
        x, weight = drawn(2, 3, 16, seed=1).requires_grad_(), drawn(16, seed=2).requires_grad_()
        more = drawn(2, 3, 16, seed=3).requires_grad_() if adds else None
        total, normed = way(x, more, weight, 1e-2)
        (total * drawn(2, 3, 16, seed=4) + normed * drawn(2, 3, 16, seed=5)).sum().backward()
        gradients = [one.grad for one in (x, weight, more) if one is not None]
        found.append([total.detach(), normed.detach(), *gradients])
    assert len(found[0]) == (5 if adds else 4)
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_operator_keeps_the_rules_of_torchs_compiler() -> None:
    rows = [drawn(6, 16, seed=seed) for seed in range(3)]
    torch.library.opcheck(norm.norm_backward, (*rows, drawn(16, seed=4), drawn(6, seed=5)))
