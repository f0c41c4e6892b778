"""Tiny random checkpoints made by transformers: read, computed with, written back, and read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemorun.llm.huggingface import read_config, read_model, write_model
from nemorun.training import TrainingError
from tests.llm.huggingface.blank import blank

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 99,
    "max_position_embeddings": 64,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {"rope_parameters": LLAMA3_ROPE, "rms_norm_eps": 1e-5},
    "Llama tied": {"tie_word_embeddings": True},
    "Mistral": {"sliding_window": None, "head_dim": 16},
    "Mixtral": {"num_local_experts": 4},
    "Nemotron": {"num_key_value_heads": 4, "head_dim": 12},
}
TOKENS = torch.randint(0, 99, (2, 40), generator=torch.Generator().manual_seed(5))
#: Both compute in float32, in another order: logits of up to about 5 differ by 1e-6.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def theirs(family: str, seed: int = 3, **settings: Any) -> Any:
    """A model of transformers with random weights, norms included."""
    import transformers

    name = family.split()[0]
    config = getattr(transformers, f"{name}Config")(**SIZES | FAMILIES[family] | settings)
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_computes_the_same_and_comes_back_unchanged(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = theirs(family)
    model.save_pretrained(tmp_path / "theirs")
    config = read_config(tmp_path / "theirs")
    ours, parameters = blank(config)
    read_model(tmp_path / "theirs", parameters, config)
    with torch.no_grad():
        expected = model(TOKENS).logits
        torch.testing.assert_close(ours(TOKENS), expected, **TOLERANCE)

    write_model(
        tmp_path / "ours",
        parameters,
        config,
        dtype="float32",
        max_shard_bytes=20_000,
        tokenizer=tmp_path / "theirs",
    )
    assert (tmp_path / "ours" / "model.safetensors.index.json").is_file()
    before = load_file(tmp_path / "theirs" / "model.safetensors")
    after = {k: v for f in (tmp_path / "ours").glob("*.safetensors") for k, v in load_file(f).items()}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    assert type(again) is type(model)
    with torch.no_grad():
        assert torch.equal(again(TOKENS).logits, expected)
    assert read_config(tmp_path / "ours") == config


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    theirs("Llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_tensors_that_are_missing_superfluous_or_wrong_are_named(saved: Path) -> None:
    config, file = read_config(saved), saved / "model.safetensors"
    whole = load_file(file)
    q_proj = "model.layers.1.self_attn.q_proj.weight"
    for changed, message in (
        ({"lm_head.weight": None}, "lacks lm_head.weight. Is it"),
        ({"extra.weight": torch.ones(1)}, "has extra.weight, which this model has not"),
        ({q_proj: torch.ones(2, 2)}, rf"{q_proj} is \(2, 2\) there and \(32, 32\) in this model"),
    ):
        tensors = {name: one for name, one in (whole | changed).items() if one is not None}
        save_file(tensors, file)
        _, parameters = blank(config)
        with pytest.raises(TrainingError, match=message):
            read_model(saved, parameters, config)
        assert all(one.isnan().all() for one in parameters.values())  # nothing is filled by halves
    save_file(whole | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, file)
    read_model(saved, blank(config)[1], config)


def test_only_whole_safetensors_files_of_the_folder_are_opened(saved: Path) -> None:
    config = read_config(saved)
    weights = saved / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TrainingError, match=r"model.safetensors cannot be read as safetensors"):
        read_model(saved, blank(config)[1], config)
    index = saved / "model.safetensors.index.json"
    for file in ("../model.safetensors", "pytorch_model.bin", 3):
        index.write_text(json.dumps({"weight_map": {"lm_head.weight": file}}))
        with pytest.raises(TrainingError, match=r"only .safetensors files of the same folder"):
            read_model(saved, blank(config)[1], config)
    index.unlink()
    weights.unlink()
    with pytest.raises(TrainingError, match=r"holds neither model.safetensors nor"):
        read_model(saved, blank(config)[1], config)
    (saved / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(TrainingError, match=r"such files are pickles.*save_pretrained\(new_folder\)"):
        read_model(saved, blank(config)[1], config)


def test_a_folder_appears_whole_or_not_at_all(saved: Path, tmp_path: Path) -> None:
    config = read_config(saved)
    _, parameters = blank(config)
    read_model(saved, parameters, config)
    with pytest.raises(TrainingError, match="exists already: name a new folder"):
        write_model(saved, parameters, config)
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot be written"):
        write_model(tmp_path / "file" / "model", parameters, config)
    head = parameters.pop("head.weight")
    with pytest.raises(TrainingError, match=r"no rank has head.weight"):
        write_model(tmp_path / "out", parameters, config)
    parameters["head.weight"] = head
    (saved / "tokenizer.json").write_text("{}")
    write_model(tmp_path / "out", parameters, config, tokenizer=saved)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "model", "out"]
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"}
    assert load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"].dtype == torch.bfloat16
    described = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (described["bos_token_id"], described["torch_dtype"]) == (1, "bfloat16")
