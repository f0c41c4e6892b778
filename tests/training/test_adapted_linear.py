"""A frozen matrix with an adapter as one product, against the same in plain operators."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nemorun.training.adapted import Adapter, adapted_linear

Way = Callable[..., Tensor]


def plain(x: Tensor, weight: Tensor, adapter: Adapter) -> Tensor:
    a, b, dropped = adapter
    return F.linear(x, weight) + F.linear(F.linear(x if dropped is None else dropped, a), b)


def results(way: Way, drops: bool) -> list[Tensor]:
    """Output, and the gradients of x, A, B and what is seen of x."""
    numbers = torch.Generator().manual_seed(0)
    shapes = [(2, 5, 8), (12, 8), (3, 8), (12, 3), (2, 5, 8)]
    x, weight, a, b, dropped = (torch.randn(s, generator=numbers, dtype=torch.float64) for s in shapes)
    leaves = [x, a, b, *([dropped] if drops else [])]
    for leaf in leaves:
        leaf.requires_grad_()
    y = way(x, weight, Adapter(a, b, dropped if drops else None))
    grad = torch.randn(y.shape, generator=numbers, dtype=y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


@pytest.mark.parametrize("drops", [False, True])
def test_one_product_gives_what_two_give(drops: bool) -> None:
    for ours, theirs in zip(results(adapted_linear, drops), results(plain, drops), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_first_layer_asks_for_no_gradient_of_its_input() -> None:
    x, weight, a, b = torch.ones(4, 8), torch.ones(12, 8), torch.ones(3, 8), torch.ones(12, 3)
    adapted_linear(x, weight, Adapter(a.requires_grad_(), b.requires_grad_())).sum().backward()
    assert a.grad is not None and b.grad is not None and x.grad is None


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.parametrize("drops", [False, True])
def test_it_is_compiled_whole(drops: bool) -> None:
    compiled = torch.compile(adapted_linear, fullgraph=True)
    for ours, theirs in zip(results(compiled, drops), results(plain, drops), strict=True):
        torch.testing.assert_close(ours, theirs)
