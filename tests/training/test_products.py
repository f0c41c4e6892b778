"""Products that are added to something, beside plain operators."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nemorun.training import products


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("sums", [False, True])
def test_a_trained_matrix_has_the_gradients_of_plain_operators(adds: bool, sums: bool) -> None:
    results = []
    for ours in (True, False):
        x, weight = drawn(2, 3, 16, seed=1).requires_grad_(), drawn(8, 16, seed=2).requires_grad_()
        more = drawn(2, 3, 8, seed=3).requires_grad_()
        total = torch.ones(8, 16, dtype=torch.float32) if ours and sums else None
        if ours:
            y = products.trained_linear(x, weight, total, more if adds else None)
        else:
            y = F.linear(x, weight) + (more if adds else 0)
        y.backward(drawn(2, 3, 8, seed=4))
        of_weight = weight.grad if total is None else total.double() - 1
        results.append([y.detach(), x.grad, of_weight, *([more.grad] if adds else [])])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_matrix_that_is_not_trained_gets_no_gradient() -> None:
    x, more = drawn(2, 3, 16, seed=1).requires_grad_(), drawn(2, 3, 8, seed=2).requires_grad_()
    weight = drawn(8, 16, seed=3)
    products.trained_linear(x, weight, None, more).sum().backward()
    assert weight.grad is None
    torch.testing.assert_close(x.grad, weight.sum(0).expand(2, 3, 16))
    torch.testing.assert_close(more.grad, torch.ones_like(more))


def test_the_operator_keeps_the_rules_of_torchs_compiler() -> None:
    for more in (drawn(6, 8, seed=3), None):
        torch.library.opcheck(products._product, (drawn(6, 16, seed=1), drawn(8, 16, seed=2), more))
