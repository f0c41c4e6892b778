"""A run that starts from a Hugging Face folder has its weights, and says so where it cannot."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nemorun.errors import ConfigError
from nemorun.llm import FinetuneDataConfig, GPTConfig, GPTModel, finetune
from nemorun.llm import run as rank_program
from nemorun.llm.config import LoraConfig
from nemorun.llm.huggingface import check_base, read_adapter, read_config, read_lora, read_model
from nemorun.training import LogConfig, TrainerConfig
from nemorun.training.checkpoint import complete
from nemorun.training.checkpoint.reader import Reader
from nemorun.training.errors import TrainingError
from tests.llm.huggingface.blank import blank
from tests.llm.huggingface.test_models import theirs


@pytest.fixture
def base(tmp_path: Path) -> Path:
    theirs("Llama", vocab_size=260).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_adapters_are_trained_on_the_base_and_go_on_with_it_alone(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEMORUN_CACHE_DIR", str(tmp_path / "cache"))
    examples = tmp_path / "examples.jsonl"
    line = json.dumps({"prompt": "What is two plus two?", "completion": "Four."})
    examples.write_text(f"{line}\n" * 20)
    made: list[GPTModel] = []

    def kept(config: GPTConfig) -> GPTModel:
        made.append(GPTModel(config))
        return made[-1]

    monkeypatch.setattr(rank_program, "GPTModel", kept)
    config = replace(read_config(base), lora=LoraConfig(enabled=True, rank=2))

    def run(steps: int, base: Path = base) -> dict[str, float]:
        return finetune(
            config,
            TrainerConfig(max_steps=steps, accelerator="cpu", precision="fp32", log_interval=1),
            FinetuneDataConfig(train_data=examples, global_batch_size=2),
            log=LogConfig(dir=tmp_path / "results", tensorboard=False),
            base=base,
            export=steps == 3,
        )

    assert run(2)["step"] == 2
    _, expected = blank(replace(config, lora=LoraConfig()))
    read_model(base, expected, config)
    found = dict(made[0].named_parameters())
    assert all(torch.equal(found[name], one) for name, one in expected.items())
    assert any(one.any() for name, one in found.items() if name.endswith("lora_b"))

    adapter = tmp_path / "results" / "adapter"
    assert read_lora(adapter) == config.lora
    first = load_file(adapter / "adapter_model.safetensors")

    (checkpoint,) = complete(tmp_path / "results" / "checkpoints")
    saved = {name for name in Reader(checkpoint).metadata.state_dict_metadata if name.startswith("model.")}
    assert saved and all(".lora_" in name for name in saved)

    theirs("Llama", vocab_size=260, seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(TrainingError, match=r"adapters to other frozen weights \(base .*\) than .* \(base "):
        run(3, tmp_path / "other")
    shutil.move(base, tmp_path / "moved")
    with pytest.raises(TrainingError, match=r"base holds neither model\.safetensors nor"):
        run(3)
    assert run(3, tmp_path / "moved")["step"] == 3
    again = dict(made[-1].named_parameters())
    assert all(torch.equal(again[name], one) for name, one in expected.items())
    second = load_file(adapter / "adapter_model.safetensors")
    assert first.keys() == second.keys() and any(not torch.equal(first[name], second[name]) for name in first)

    merged, parameters = blank(replace(config, lora=LoraConfig()))
    read_model(tmp_path / "results" / "model", parameters, config)
    tokens = torch.arange(10)[None]
    trained, parameters = blank(config)
    read_model(tmp_path / "moved", parameters, config)
    read_adapter(adapter, parameters, config)
    with torch.no_grad():  # the exported model is in bfloat16
        torch.testing.assert_close(merged(tokens), trained(tokens), rtol=0.05, atol=0.05)


def test_a_base_of_another_shape_is_refused_with_both(base: Path) -> None:
    config = read_config(base)
    check_base(base, replace(config, seq_length=16, lora=LoraConfig(enabled=True), init_std=1.0))
    with pytest.raises(ConfigError, match=r"is of another model: num_layers=2 there and 3 here. Take"):
        check_base(base, replace(config, num_layers=3))
    with pytest.raises(ConfigError, match=r"ffn_size=64 there and 112 here"):
        check_base(base, replace(config, ffn_hidden_size=None))
    with pytest.raises(ConfigError, match=r"rope_scaling=RopeScaling.* there and None here"):
        check_base(base, replace(config, rope_scaling=None))
    with pytest.raises(ConfigError, match=r"nowhere/config.json cannot be read"):
        check_base("/nowhere", config)
