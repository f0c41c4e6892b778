"""Experts and the loss that balances them: against a loop over tokens, Hugging Face, and over real ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nemorun.executors.local.ports import reserve_port
from nemorun.llm.balance import balance_loss
from nemorun.llm.experts import Experts
from nemorun.training.exchange import take_rows
from nemorun.training.grouped import grouped_product
from tests.llm.experts_ranks import KINDS, LAYOUTS, RANKS
from tests.llm.experts_reference import CONFIG, SCALE, Case, case, differences, load, naive

ROOT = Path(__file__).resolve().parents[2]


def outcome(layer: Experts, c: Case, rows_at_once: int = 4, call: object = None) -> dict[str, Tensor]:
    """Forward passes of all micro-batches, then their backward passes, as a pipeline may do."""
    x = c.x.clone().requires_grad_()
    layer.begin_step(torch.tensor(SCALE))
    parts = [slice(i, i + rows_at_once) for i in range(0, len(x), rows_at_once)]
    outputs = [(call or layer)(x[part], ~c.valid[part]) for part in parts]  # type: ignore[operator]
    for y, part in zip(outputs, parts, strict=True):
        y.backward(c.above[part])
    found = {
        "y": torch.cat(outputs).detach(),
        "x": x.grad,
        "aux": layer.aux_loss,
        "tokens": layer.expert_tokens,
    }
    return found | {name: parameter.grad for name, parameter in layer.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows_at_once", [4, 1])
def test_output_gradients_and_aux_loss_equal_a_loop_over_tokens(kind: str, rows_at_once: int) -> None:
    c = case(kind)
    assert differences(outcome(load(Experts(CONFIG), c.weights), c, rows_at_once), naive(c)) == []


def test_an_expert_without_a_token_has_gradients_of_zeros() -> None:
    c = case("unused")
    found = outcome(load(Experts(CONFIG), c.weights), c)
    for name in ("gate_up", "down"):
        assert found[name][2].eq(0).all()
        assert found[name][[0, 1, 3]].ne(0).any(-1).any(-1).all()


def test_recomputation_counts_the_aux_loss_once() -> None:
    c = case()
    layer = load(Experts(CONFIG), c.weights)
    for reentrant in (False, True):
        layer.zero_grad()
        call = partial(checkpoint, layer, use_reentrant=reentrant)
        assert differences(outcome(layer, c, 2, call), naive(c)) == []


@pytest.mark.parametrize("recompute", [False, True])
def test_compiles_as_one_graph(recompute: bool) -> None:
    torch._dynamo.reset()
    c = case("unused")
    layer = load(Experts(CONFIG), c.weights)
    call = partial(checkpoint, layer, use_reentrant=False) if recompute else layer.forward
    # Inductor needs a C++ compiler and half a minute; what it is given is the same.
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert differences(outcome(layer, c, 2, compiled), naive(c)) == []


def test_a_step_counts_from_zero_and_evaluation_is_not_counted() -> None:
    c = case()
    layer = load(Experts(CONFIG), c.weights)
    outcome(layer, c)
    first = layer.aux_loss.clone()
    layer.zero_grad()
    assert torch.equal(outcome(layer, c)["aux"], first)
    with torch.no_grad():
        layer(c.x)
    layer.eval()(c.x.clone().requires_grad_()).sum().backward()
    assert torch.equal(layer.aux_loss, first)


def test_bfloat16_is_near_float32() -> None:
    c = case("unused")
    layer = load(Experts(CONFIG), c.weights)
    c.x = c.x.bfloat16()
    c.above = c.above.bfloat16()
    found = outcome(layer, c)
    assert found["y"].dtype == torch.bfloat16
    assert found["gate_up"].dtype == torch.float32
    assert differences(found, naive(Case(c.x.float(), c.valid, c.above.float(), c.weights)), 0.03) == []


@pytest.mark.parametrize("ends", [[3, 3, 8], [0, 0, 0], [0, 5, 5]])
def test_grouped_product(ends: list[int]) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(ends[-1], 8, requires_grad=True), torch.randn(3, 4, 8, requires_grad=True)
    above = torch.randn(ends[-1], 4)
    grouped_product(x, weight, torch.tensor(ends, dtype=torch.int32)).backward(above)
    found = x.grad, weight.grad
    x.grad = weight.grad = None
    owners = torch.tensor([e for e in range(3) for _ in range(ends[e] - ([0, *ends][e]))], dtype=torch.int64)
    torch.einsum("td,tod->to", x, weight[owners]).backward(above)
    torch.testing.assert_close(found, (x.grad, weight.grad))


def test_taken_rows_pass_their_gradients_on() -> None:
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    order = torch.tensor([4, 0, 5, 2, 1, 3])  # each of 3 rows is taken twice
    assert torch.autograd.gradcheck(lambda x: take_rows(x, order // 2, order.argsort()), x)


def test_equals_hugging_face_mixtral() -> None:
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    config = mixtral.MixtralConfig(
        hidden_size=CONFIG.hidden_size,
        intermediate_size=CONFIG.ffn_size,
        num_local_experts=CONFIG.num_experts,
        num_experts_per_tok=CONFIG.experts_per_token,
    )
    c = case()
    theirs = mixtral.MixtralSparseMoeBlock(config)
    blocks = c.weights["gate_up"].unflatten(1, (-1, 2, CONFIG.gate_block))
    with torch.no_grad():
        theirs.gate.weight.copy_(c.weights["router.weight"])
        theirs.experts.gate_up_proj.copy_(blocks.transpose(1, 2).flatten(1, 3))
        theirs.experts.down_proj.copy_(c.weights["down"])
    layer = load(Experts(CONFIG), c.weights)
    ours_x, theirs_x = c.x.clone().requires_grad_(), c.x.clone().requires_grad_()
    ours, expected = layer(ours_x), theirs(theirs_x)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    ours.backward(c.above)
    expected.backward(c.above)
    torch.testing.assert_close(ours_x.grad, theirs_x.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.router.weight.grad, theirs.gate.weight.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.down.grad, theirs.experts.down_proj.grad, rtol=1e-5, atol=1e-5)


def test_aux_loss_equals_hugging_face_mixtral_for_each_sequence() -> None:
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    logits = torch.randn(3, 5, 4, requires_grad=True)
    valid = torch.tensor([[True] * 5, [True] * 2 + [False] * 3, [True] * 4 + [False]])
    loss, _ = balance_loss(logits, logits.topk(2).indices, ~valid)
    (gradient,) = torch.autograd.grad(loss, logits)
    expected = sum(
        mixtral.load_balancing_loss_func((row,), 4, 2, mask[None]) * mask.sum()
        for row, mask in zip(logits, valid, strict=True)
    )
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0])


def test_an_even_load_has_the_least_loss() -> None:
    logits = torch.eye(4).repeat(1, 2, 1) * 9
    even, _ = balance_loss(logits, logits.topk(1).indices)
    uneven, _ = balance_loss(logits[:, :1].expand(1, 8, 4), logits[:, :1].expand(1, 8, 4).topk(1).indices)
    assert even / 8 == pytest.approx(1.0, abs=1e-4)
    assert uneven > even


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_layout_equals_one_rank() -> None:
    with reserve_port() as reserved:
        port = reserved.getsockname()[1]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS)}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.llm.experts_ranks"],
                cwd=ROOT,
                env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(RANKS)
        ]
        try:
            outputs = [process.communicate(timeout=280) for process in started]
        finally:
            for process in started:
                process.kill()
    assert [process.returncode for process in started] == [0] * RANKS, outputs
    found = json.loads(outputs[0][0])
    assert found == {f"{name}-{kind}": [] for name in LAYOUTS for kind in KINDS}
