"""Experts on a GPU, where torch's grouped product does the work."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nemorun.llm.config import GPTConfig
from nemorun.llm.experts import Experts
from nemorun.training import grouped

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


# runs of any length: none at the start, in the middle and at the end; odd ones, which begin at odd addresses
@pytest.mark.parametrize("counts", [[64, 64, 64, 64], [0, 1, 0, 13], [7, 0, 121, 0], [0, 0, 0, 5]])
@pytest.mark.parametrize(("height", "width"), [(64, 32), (24, 40)])
def test_torchs_grouped_product_equals_one_by_one(counts: list[int], height: int, width: int) -> None:
    torch.manual_seed(0)
    ends = torch.tensor(counts, device="cuda").cumsum(0).to(torch.int32)
    rows = sum(counts)
    x = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(4, height, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    above = torch.randn(rows, height, device="cuda", dtype=torch.bfloat16)
    assert grouped._suits_gpu(x, weight)
    found: list[list[Tensor]] = []
    for product in (grouped.grouped_product, grouped._one_by_one):
        y = product(x, weight, ends)
        found.append([y.detach(), *torch.autograd.grad(y, (x, weight), above)])
    for ours, expected in zip(*found, strict=True):
        assert relative_error(ours, expected) < 0.01
    empty = [e for e, count in enumerate(counts) if not count]
    assert found[0][2][empty].eq(0).all()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_bfloat16_on_the_gpu_is_near_float32_on_the_cpu(compiled: bool, recompute: bool) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    config = GPTConfig(hidden_size=64, ffn_hidden_size=128, num_experts=8, experts_per_token=2)
    layer = Experts(config)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.2)
    x = torch.randn(2, 100, 64).bfloat16()
    above = torch.randn(2, 100, 64).bfloat16()

    def run(device: str, dtype: torch.dtype) -> list[Tensor]:
        layer.to(device).zero_grad()
        layer._scale = layer._sums = None
        layer.begin_step(torch.tensor(0.01, device=device))
        call = partial(checkpoint, layer, use_reentrant=False) if recompute else layer.forward
        if compiled and device == "cuda":
            call = torch.compile(call, fullgraph=True)
        own = x.to(device, dtype).clone().requires_grad_()
        y = call(own)
        y.backward(above.to(device, dtype))
        assert own.grad is not None
        grads = [parameter.grad.clone() for parameter in layer.parameters() if parameter.grad is not None]
        return [t.detach().float().cpu() for t in (y, own.grad, layer.aux_loss, layer.expert_tokens, *grads)]

    expected = run("cpu", torch.float32)
    found, again = run("cuda", torch.bfloat16), run("cuda", torch.bfloat16)
    assert len(found) == 7
    for one, two, right in zip(found, again, expected, strict=True):
        assert torch.equal(one, two), "two runs differ"
        assert relative_error(one, right) < 0.02


def test_deterministic_mode_allows_all_that_experts_use() -> None:
    layer = Experts(GPTConfig(hidden_size=64, ffn_hidden_size=128, num_experts=8)).cuda()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.2)
    layer.begin_step(torch.tensor(0.01, device="cuda"))
    torch.use_deterministic_algorithms(True)
    try:
        layer(torch.randn(2, 100, 64, device="cuda", dtype=torch.bfloat16)).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
