"""Products in float8: against float32, against what the quantized numbers give exactly, and in whole runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nemorun.errors import ConfigError
from nemorun.llm import DataConfig, GPTConfig, GPTModel, pretrain
from nemorun.llm.config import LoraConfig
from nemorun.training import (
    CheckpointConfig,
    LogConfig,
    OptimConfig,
    ParallelismConfig,
    TrainerConfig,
    fp8,
    loop,
)
from nemorun.training.adapted import Adapter
from nemorun.training.batch import Inputs
from nemorun.training.fp8 import E4M3, E5M2, quantized, scaled_gated, scaled_linear
from nemorun.training.gating import gate
from tests.training.forks import Forks
from tests.training.ranks import metrics


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def of_a_gpu(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, **rest: Any) -> Tensor:
    """torch's product for the CPU, with what a GPU wants of its factors."""
    assert a.is_contiguous() and b.t().is_contiguous()
    assert not any(side % 16 for side in (*a.shape, *b.shape))
    assert scale_a.dtype == scale_b.dtype == torch.float32 and scale_a.numel() == scale_b.numel() == 1
    assert E4M3 in (a.dtype, b.dtype)
    return TORCHS(a, b, scale_a=scale_a, scale_b=scale_b, **rest)


TORCHS = torch._scaled_mm


@pytest.fixture(params=["as on the CPU", "as on a GPU"])
def product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "as on a GPU":
        monkeypatch.setattr(fp8, "_on_a_gpu", lambda _: True)
        monkeypatch.setattr(torch, "_scaled_mm", of_a_gpu)


def results(product: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The product and the gradients of its inputs."""
    leaves = [one.clone().requires_grad_() for one in inputs]
    y = product(*leaves)
    y.backward(drawn(*y.shape, seed=9).to(y.dtype))
    return [y.detach(), *(one.grad for one in leaves if one.grad is not None)]


def apart(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).norm() / other.float().norm())


def test_quantized_numbers_use_the_whole_range_and_keep_their_size() -> None:
    x = drawn(32, 16, seed=1) * 1e-6
    for kind, error in ((E4M3, 0.04), (E5M2, 0.08)):
        values, scale = quantized(x, kind)
        assert values.float().abs().max() == torch.finfo(kind).max
        assert apart(values.float() * scale, x) < error
    values, scale = quantized(torch.zeros(4), E4M3)
    assert not values.float().any() and scale.isfinite()
    assert quantized(torch.tensor([1.0, torch.nan]), E4M3)[0].float().isnan().all()  # it must not be hidden


def test_products_in_float8_are_nearly_those_in_float32(product: None) -> None:
    x, weight = drawn(2, 16, 64, seed=1), drawn(32, 64, seed=2)
    found = results(scaled_linear, x.bfloat16(), weight.bfloat16())
    assert [one.dtype for one in found] == [torch.bfloat16] * 3
    y, grad_x, grad_weight = results(F.linear, x, weight)
    # Rounding to 3 bits of mantissa is wrong by 2.6 % in the mean, and to 2 bits by 5.2 %; a product has both
    # of its operands' errors.
    assert apart(found[0], y) < 0.045
    assert apart(found[1], grad_x) < 0.07
    assert apart(found[2], grad_weight) < 0.07


def test_products_in_float8_are_those_of_the_quantized_numbers(product: None) -> None:
    x, weight = drawn(32, 64, seed=1).bfloat16(), drawn(48, 64, seed=2).bfloat16()
    found = results(scaled_linear, x, weight)
    x8, weight8 = (quantized(one, E4M3) for one in (x, weight))
    grad8 = quantized(drawn(32, 48, seed=9).bfloat16(), E5M2)
    x, weight, grad = (values.float() * scale for values, scale in (x8, weight8, grad8))
    for ours, theirs in zip(found, (x @ weight.T, grad @ weight, grad.T @ x), strict=True):
        torch.testing.assert_close(ours, theirs.bfloat16(), rtol=2**-7, atol=1e-3)


def test_an_adapter_is_added_without_being_quantized(product: None) -> None:
    x, weight = drawn(16, 32, seed=1).bfloat16(), drawn(48, 32, seed=2).bfloat16()
    a, b = drawn(4, 32, seed=3).bfloat16(), drawn(48, 4, seed=4).bfloat16()

    def plain(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return scaled_linear(x, weight) + x @ a.T @ b.T

    def joined(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return scaled_linear(x, weight, adapter=Adapter(a, b))

    def halved(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return scaled_linear(x, weight, adapter=Adapter(2 * a, b, x / 2))

    for way in (joined, halved):
        for ours, theirs in zip(results(way, x, a, b), results(plain, x, a, b), strict=True):
            assert apart(ours, theirs) < 2**-6


@pytest.mark.parametrize("adapts", [False, True])
def test_a_gate_behind_a_product_changes_no_bit(product: None, adapts: bool) -> None:
    x, weight = drawn(16, 32, seed=1).bfloat16(), drawn(64, 32, seed=2).bfloat16()
    small = [drawn(4, 32, seed=3).bfloat16(), drawn(64, 4, seed=4).bfloat16()] if adapts else []

    def apart(x: Tensor, weight: Tensor, *small: Tensor) -> Tensor:
        y = gate(scaled_linear(x, weight, adapter=Adapter(*small) if small else None), 4)[0]
        return scaled_linear(y, weight[:, :32])

    def joined(x: Tensor, weight: Tensor, *small: Tensor) -> Tensor:
        y, largest = scaled_gated(x, weight, 4, adapter=Adapter(*small) if small else None)
        return scaled_linear(y, weight[:, :32], largest=largest)

    for ours, theirs in zip(
        results(joined, x, weight, *small), results(apart, x, weight, *small), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_products_in_float8_are_compiled_whole() -> None:
    x, weight = drawn(2, 16, 64, seed=1).bfloat16(), drawn(32, 64, seed=2).bfloat16()
    a, b = drawn(4, 64, seed=3).bfloat16(), drawn(32, 4, seed=4).bfloat16()
    compiled = torch.compile(scaled_linear, fullgraph=True)
    for ours, theirs in zip(results(compiled, x, weight), results(scaled_linear, x, weight), strict=True):
        assert apart(ours, theirs) < 1e-2

    def adapted(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return scaled_linear(x, weight, adapter=Adapter(a, b))

    compiled = torch.compile(adapted, fullgraph=True)
    for ours, theirs in zip(results(compiled, x, a, b), results(adapted, x, a, b), strict=True):
        assert apart(ours, theirs) < 1e-2


def test_a_gpu_without_float8_is_refused_with_what_to_do() -> None:
    with (
        mock.patch.object(torch.version, "cuda", "12.8"),
        mock.patch.object(torch.cuda, "get_device_capability", return_value=(8, 0)),
        mock.patch.object(torch.cuda, "get_device_name", return_value="NVIDIA A100"),
        pytest.raises(ConfigError, match=r"NVIDIA A100 has 8\.0\. Set trainer\.precision=bf16-mixed"),
    ):
        fp8.require_float8(torch.device("cuda"))
    fp8.require_float8(torch.device("cpu"))


def test_matrices_that_do_not_fit_are_named() -> None:
    shape = GPTConfig(hidden_size=32, num_layers=1, num_attention_heads=4, ffn_hidden_size=24, vocab_size=64)
    model = GPTModel(shape)
    assert fp8.choose_matrices(model) == ["blocks.0.feed_forward.down"]
    assert model.blocks["0"].attention.qkv.float8 and not model.blocks["0"].feed_forward.down.float8


def test_a_frozen_weight_is_quantized_once_and_gives_the_same() -> None:
    lora = LoraConfig(enabled=True, rank=4, targets=("q_proj", "v_proj", "down_proj"))
    shape = GPTConfig(
        hidden_size=32, num_layers=1, num_attention_heads=4, ffn_hidden_size=64, vocab_size=64, lora=lora
    )
    model = GPTModel(shape).materialize()
    model.dtype = torch.bfloat16
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(len(name)))
        else:
            parameter.data = parameter.data.bfloat16()
    fp8.choose_matrices(model)
    tokens = torch.arange(32).view(2, 16)
    names = set(model.state_dict())

    def learned() -> list[Tensor]:
        model.zero_grad()
        loss = model(tokens, Inputs(labels=tokens))
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    each_time = learned()
    fp8.quantize_frozen(model)
    once = learned()
    assert len(once) == len(each_time) == 1 + 2 * 2  # those of qkv and down
    assert all(torch.equal(one, other) for one, other in zip(once, each_time, strict=True))
    assert set(model.state_dict()) == names
    frozen = model.blocks["0"].attention.qkv
    frozen.float8_weight.copy_(torch.zeros_like(frozen.weight))  # it is what is multiplied with
    assert not torch.equal(learned()[0], once[0])
    assert model.blocks["0"].feed_forward.gate_up.float8_weight is not None  # frozen without adapters, too


# Whole runs


def learn(folder: str, trainer: dict[str, Any], parallelism: dict[str, Any], lora: bool) -> None:
    """What each rank does."""
    os.environ["NEMORUN_CACHE_DIR"] = str(Path(folder).parent / "cache")
    world = int(os.environ["WORLD_SIZE"])
    with mock.patch.object(loop, "quantize_frozen", wraps=loop.quantize_frozen) as quantize:
        _pretrain(folder, world, trainer, parallelism, lora)
    print(f"quantized {quantize.call_count} times")


def _pretrain(
    folder: str, world: int, trainer: dict[str, Any], parallelism: dict[str, Any], lora: bool
) -> None:
    pretrain(
        GPTConfig(
            hidden_size=32,
            num_layers=2,
            num_attention_heads=4,
            num_query_groups=2,
            ffn_hidden_size=64,
            seq_length=32,
            vocab_size=258,
            lora=LoraConfig(enabled=lora, rank=4, targets=("q_proj", "v_proj", "down_proj")),
        ),
        TrainerConfig(
            **{
                "max_steps": 4,
                "log_interval": 1,
                "accelerator": "cpu",
                "devices": world,
                "precision": "fp8-mixed",
            }
            | trainer
        ),
        DataConfig(path=Path(folder).parent / "text.txt", global_batch_size=2, val_fraction=0.1),
        OptimConfig(lr=1e-2, warmup_steps=1),
        ParallelismConfig(**parallelism),
        CheckpointConfig(interval=2),
        LogConfig(dir=folder, tensorboard=False),
        sample=None,
    )


def losses(
    forks: Forks, folder: Path, ranks: int = 1, lora: bool = False, parallelism: Any = None, **trainer: Any
) -> tuple[list[float], str]:
    (folder.parent / "text.txt").write_text("a hundred green bottles, standing on the wall. " * 60)
    output = forks.check(learn, ranks, str(folder), trainer, parallelism or {}, lora)
    return [numbers["loss"] for _, numbers in sorted(metrics(folder).items())], output


def test_a_run_in_float8_learns_and_goes_on_exactly(forks: Forks, tmp_path: Path) -> None:
    found, output = losses(forks, tmp_path / "one")
    assert "float8   the blocks' matrices; the head, embeddings stay in bfloat16" in output
    assert found[3] < found[0] - 0.2
    plain, _ = losses(forks, tmp_path / "bf16", precision="bf16-mixed")
    assert found != plain and found == pytest.approx(plain, abs=0.05)
    shutil.rmtree(tmp_path / "one" / "checkpoints" / "step-00000004")
    again, output = losses(forks, tmp_path / "one")
    assert "goes on from step 2" in output and again == found


@pytest.mark.parametrize(
    ("parallelism", "trainer"),
    [
        ({}, {"recompute": "selective"}),
        ({}, {"strategy": "ddp"}),
        ({"tensor_parallel": 2}, {}),
        ({"pipeline_parallel": 2}, {}),
    ],
)
def test_every_layout_learns_in_float8(
    forks: Forks, tmp_path: Path, parallelism: dict[str, int], trainer: dict[str, str]
) -> None:
    one, _ = losses(forks, tmp_path / "one")
    two, _ = losses(forks, tmp_path / "two", 2, parallelism=parallelism, **trainer)
    assert two == pytest.approx(one, abs=0.02)  # of scales over other parts, and of other roundings


def test_adapters_over_a_base_in_float8_learn_and_go_on_exactly(forks: Forks, tmp_path: Path) -> None:
    found, output = losses(forks, tmp_path / "one", lora=True)
    assert found[3] < found[0] and "quantized 1 times" in output
    plain, _ = losses(forks, tmp_path / "bf16", lora=True, precision="bf16-mixed")
    assert found != plain and found == pytest.approx(plain, abs=0.05)
    for ranks, parallelism in ((2, {}), (2, {"tensor_parallel": 2})):
        folder = tmp_path / f"two{len(parallelism)}"
        two, output = losses(forks, folder, ranks, lora=True, parallelism=parallelism)
        assert f"quantized {len(parallelism)} times" in output  # not what ranks share
        assert two == pytest.approx(found, abs=0.02)
    shutil.rmtree(tmp_path / "one" / "checkpoints" / "step-00000004")
    again, output = losses(forks, tmp_path / "one", lora=True)
    assert "goes on from step 2" in output and again == found
