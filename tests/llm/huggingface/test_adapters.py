"""Adapters that PEFT wrote and adapters that it reads, with B that is not zero."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nemorun.errors import ConfigError
from nemorun.llm.huggingface import (
    read_adapter,
    read_config,
    read_lora,
    read_model,
    write_adapter,
    write_model,
)
from nemorun.training import TrainingError
from tests.llm.huggingface.blank import blank
from tests.llm.huggingface.test_models import TOKENS, TOLERANCE, theirs

TARGETS = {
    "Llama": ["q_proj", "v_proj", "up_proj", "down_proj"],
    "Mixtral": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "Nemotron": ["k_proj", "up_proj"],
}


def adapted(family: str, folder: Path) -> Any:
    """A model of transformers with PEFT's adapters, saved in `folder/base` and `folder/peft`."""
    import peft

    model = theirs(family)
    model.save_pretrained(folder / "base")
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=TARGETS[family], task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder / "peft")
    return model


@pytest.mark.parametrize("family", TARGETS)
def test_adapters_compute_the_same_both_ways_and_merged(family: str, tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    model = adapted(family, tmp_path)
    lora = read_lora(tmp_path / "peft")
    assert (lora.rank, lora.alpha, set(lora.targets)) == (3, 7, set(TARGETS[family]))
    config = replace(read_config(tmp_path / "base"), lora=lora)
    ours, parameters = blank(config)
    read_model(tmp_path / "base", parameters, config)
    read_adapter(tmp_path / "peft", parameters, config)
    with torch.no_grad():
        expected = model(TOKENS).logits
        torch.testing.assert_close(ours(TOKENS), expected, **TOLERANCE)

    write_adapter(tmp_path / "ours", parameters, config, base=tmp_path / "base")
    before = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    after = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert read_lora(tmp_path / "ours") == lora
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    again = peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
    with torch.no_grad():
        assert torch.equal(again(TOKENS).logits, expected)

    write_model(tmp_path / "merged", parameters, config, dtype="float32")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(merged(TOKENS).logits, expected, **TOLERANCE)
    write_model(tmp_path / "bare", parameters, config, dtype="float32", merge_lora=False)
    bare = load_file(tmp_path / "bare" / "model.safetensors")
    base_tensors = load_file(tmp_path / "base" / "model.safetensors")
    assert all(torch.equal(bare[name], base_tensors[name]) for name in base_tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora=True is not supported, only False"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern=.*only {}"),
        ({"peft_type": "IA3"}, "peft_type='IA3' is not supported, only 'LORA'"),
        ({"target_modules": "all-linear"}, "target_modules='all-linear' is not supported, only a list"),
        ({"target_modules": ["lm_head"]}, "some of q_proj, k_proj"),
        ({"r": 0}, "lora.rank=0"),
    ],
)
def test_adapters_that_the_model_cannot_have_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    described = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(described | change))
    with pytest.raises(ConfigError, match=message):
        read_lora(tmp_path)


def test_adapters_of_another_rank_or_for_other_matrices_are_refused(tmp_path: Path) -> None:
    adapted("Llama", tmp_path)
    lora = read_lora(tmp_path / "peft")
    for other, message in (
        (replace(lora, rank=4), r"q_proj.lora_A.weight is \(3, 32\) there and \(4, 32\) in this model"),
        (replace(lora, targets=("q_proj", "k_proj")), r"lacks .*k_proj.* and has .*down_proj"),
    ):
        config = replace(read_config(tmp_path / "base"), lora=other)
        with pytest.raises(TrainingError, match=message):
            read_adapter(tmp_path / "peft", blank(config)[1], config)
