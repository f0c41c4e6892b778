"""Compiled blocks compute what the plain ones do."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from nemorun.llm import DataConfig, GPTConfig, pretrain
from nemorun.llm.config import LoraConfig
from nemorun.training import LogConfig, OptimConfig, TrainerConfig


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.parametrize("recompute", ["none", "selective"])
def test_a_compiled_model_learns_the_same(
    recompute: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEMORUN_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("a text of a few words " * 40)

    def train(compiled: bool) -> dict[str, float]:
        return pretrain(
            GPTConfig(hidden_size=32, num_layers=2, num_attention_heads=4, seq_length=16, vocab_size=257),
            TrainerConfig(
                max_steps=4, accelerator="cpu", precision="fp32", compile=compiled, recompute=recompute
            ),
            DataConfig(path=tmp_path / "text.txt", global_batch_size=2, reset_positions=True),
            OptimConfig(lr=1e-2, warmup_steps=1),
            log=LogConfig(dir=tmp_path / str(compiled), tensorboard=False),
            sample=None,
        )

    plain, compiled = train(False), train(True)
    for name in ("loss", "grad_norm", "val_loss"):
        assert compiled[name] == pytest.approx(plain[name], rel=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.parametrize(("lora", "recompute"), [(False, "selective"), (True, "none")])
def test_a_compiled_model_learns_the_same_in_float8(
    lora: bool, recompute: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEMORUN_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("a text of a few words " * 40)

    def train(compiled: bool) -> dict[str, float]:
        return pretrain(
            GPTConfig(
                hidden_size=32,
                num_layers=2,
                num_attention_heads=4,
                ffn_hidden_size=64,
                seq_length=16,
                vocab_size=257,
                lora=LoraConfig(enabled=lora, rank=4),
            ),
            TrainerConfig(
                max_steps=2,
                accelerator="cpu",
                precision="fp8-mixed",
                compile=compiled,
                recompute=recompute,
                val_batches=0,  # which would be compiled, too
            ),
            DataConfig(path=tmp_path / "text.txt", global_batch_size=2),
            OptimConfig(lr=1e-3, warmup_steps=1),
            log=LogConfig(dir=tmp_path / str(compiled), tensorboard=False),
            sample=None,
        )

    plain, compiled = train(False), train(True)
    # Compiled code rounds to bfloat16 less often.
    assert compiled["loss"] == pytest.approx(plain["loss"], abs=0.005)
    assert compiled["grad_norm"] == pytest.approx(plain["grad_norm"], rel=0.03)
