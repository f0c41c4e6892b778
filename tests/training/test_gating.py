"""The gate of a feed-forward layer as an operator of its own, beside plain operators."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy

from nemorun.training import TrainerConfig, gating, parallel
from nemorun.training.parallel import _keep_products

ROOT = Path(__file__).resolve().parents[2]


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("block", [1, 4, 16])
def test_the_operator_and_its_gradient_are_those_of_plain_operators(block: int) -> None:
    both, grad = drawn(6, 32, seed=1), drawn(6, 16, seed=2)
    results = []
    for function in (gating._plain, lambda *args: gating.gate(*args)[0]):
        leaf = both.clone().requires_grad_()
        inner = function(leaf, block)
        inner.backward(grad)
        results.append((inner.detach(), leaf.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
    gate, up = both.view(6, -1, 2, block).unbind(2)
    torch.testing.assert_close(results[0][0], (gate / (1 + (-gate).exp()) * up).flatten(1))


@pytest.mark.parametrize("sums", [False, True])
def test_a_matrix_behind_the_gate_has_the_gradients_of_plain_operators(sums: bool) -> None:
    both, weight, grad = drawn(2, 3, 32, seed=1), drawn(8, 16, seed=2), drawn(2, 3, 8, seed=3)
    results = []
    for joined in (False, True):
        leaf, matrix = both.clone().requires_grad_(), weight.clone().requires_grad_()
        more = drawn(2, 3, 8, seed=4).requires_grad_()
        total = torch.ones(8, 16, dtype=torch.float32) if joined and sums else None
        if joined:
            y = gating.gated_linear(leaf, matrix, 4, total, more)
        else:
            y = gating._plain(leaf, 4) @ matrix.t() + more
        y.backward(grad)
        assert leaf.grad is not None and (matrix.grad is None) == (total is not None)
        of_matrix = matrix.grad if total is None else total.double() - 1
        results.append([y.detach(), leaf.grad, of_matrix, more.grad])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_operator_keeps_the_rules_of_torchs_compiler() -> None:
    both = drawn(6, 32, seed=1).requires_grad_()
    torch.library.opcheck(gating.gate, (both, 4))
    for operator in (gating.gate_backward, gating.gate_backward_and_gate):
        torch.library.opcheck(operator, (both.detach(), drawn(6, 16, seed=2), 4))


def test_the_operators_tell_the_largest_of_what_they_give() -> None:
    both, grad = drawn(300, 64, seed=1), drawn(300, 32, seed=2)
    for result, largest in (gating.gate(both, 4), gating.gate_backward(both, grad, 4)):
        assert len(largest) == 5 and largest.amax() == result.abs().amax().float()


def test_selective_recomputation_keeps_the_scale_of_a_float8_tensor_and_no_other_maximum() -> None:
    amax = torch.ops.aten.amax.default
    x = drawn(4, 4, seed=1)
    assert _keep_products(None, amax, x) == CheckpointPolicy.MUST_SAVE
    assert _keep_products(None, amax, x, [1]) == CheckpointPolicy.PREFER_RECOMPUTE
    assert _keep_products(None, torch.ops.nemorun.gate.default, x, 4) == CheckpointPolicy.PREFER_RECOMPUTE


def test_without_triton_a_gpu_runs_plain_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    layout: Any = SimpleNamespace(ranks=SimpleNamespace(device=torch.device("cuda")))
    for there in (True, False):
        monkeypatch.setattr(parallel, "HAS_TRITON", there)
        assert parallel.compiles(TrainerConfig(), layout) == there
        assert parallel.compiles(TrainerConfig(compile=True), layout)


def test_the_program_that_checks_kernels_on_gpus_runs() -> None:
    program = ROOT / "tests" / "gpu" / "kernels_check.py"
    done = subprocess.run([sys.executable, program, "--cpu"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "WRONG" not in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("ok ") > 10
