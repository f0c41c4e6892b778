"""RMSNorm with a gradient of its own, beside torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nemorun.training import norm


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def plain(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x, F.rms_norm(x, weight.shape, weight, eps)


@pytest.mark.parametrize("sums", [False, True])
def test_the_norm_and_the_gradients_of_both_results_are_torchs(sums: bool) -> None:
    found = []
    for ours in (True, False):
        x, weight = drawn(2, 3, 16, seed=1).requires_grad_(), drawn(16, seed=2).requires_grad_()
        total = torch.ones(16) if ours and sums else None
        same, normed = norm._NormBeside.apply(x, weight, 1e-2, total) if ours else plain(x, weight, 1e-2)
        (same * drawn(2, 3, 16, seed=4) + normed * drawn(2, 3, 16, seed=5)).sum().backward()
        of_weight = weight.grad if total is None else total - 1
        found.append([same.detach(), normed.detach(), x.grad, of_weight])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_operators_keep_the_rules_of_torchs_compiler() -> None:
    rows = [drawn(6, 16, seed=seed) for seed in range(3)]
    torch.library.opcheck(norm.norm, (rows[0], drawn(16, seed=4), 1e-2))
    given = (*rows, drawn(16, seed=4), drawn(6, seed=5))
    torch.library.opcheck(norm.norm_backward, given)
    torch.library.opcheck(norm.summed_norm_backward, (*given, drawn(16, seed=6)))
