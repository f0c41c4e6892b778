"""`config.json` as a GPTConfig and back; what the model cannot do is refused by its key."""

from __future__ import annotations

from typing import Any

import pytest

from nemorun.errors import ConfigError
from nemorun.llm import GPTConfig
from nemorun.llm.config import RopeScaling
from nemorun.llm.huggingface import from_huggingface, to_huggingface

SIZES = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "vocab_size": 128256,
}
LLAMA_8B: dict[str, Any] = SIZES | {
    "architectures": ["LlamaForCausalLM"],
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}
MISTRAL_7B: dict[str, Any] = SIZES | {
    "architectures": ["MistralForCausalLM"],
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "sliding_window": None,
    "vocab_size": 32768,
}


def test_llama_as_its_owner_publishes_it() -> None:
    found = from_huggingface(LLAMA_8B, seq_length=8192)
    assert found == GPTConfig(num_query_groups=8, ffn_hidden_size=14336, rope_scaling=RopeScaling())
    assert from_huggingface(LLAMA_8B).seq_length == 131072


@pytest.mark.parametrize(
    "config",
    [
        GPTConfig(num_query_groups=8, ffn_hidden_size=14336, rope_scaling=RopeScaling()),
        GPTConfig(num_query_groups=8, ffn_hidden_size=100, kv_channels=96, tie_embeddings=True),
        GPTConfig(num_query_groups=8, ffn_hidden_size=100, num_experts=8, aux_loss_coeff=0.02),
        GPTConfig(
            num_query_groups=8,
            ffn_hidden_size=100,
            activation="squared_relu",
            normalization="layernorm1p",
            rotary_percent=0.5,
        ),
    ],
)
def test_what_is_written_is_read_back(config: GPTConfig) -> None:
    assert from_huggingface(to_huggingface(config)) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architectures": ["Gemma2ForCausalLM"]},
            "architectures='Gemma2ForCausalLM' is not supported.*Llama",
        ),
        ({"architectures": [], "model_type": "gpt2"}, "architectures=''.*There are: Llama"),
        ({"attention_bias": True}, "attention_bias=True is not supported for LlamaForCausalLM: only False"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' .* only 'silu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config=.* only None"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type='linear' .* only default or llama3"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type='yarn'"),
        ({"hidden_size": "4096"}, "hidden_size='4096' must be a whole number"),
        ({"num_hidden_layers": None}, "num_hidden_layers=None must be a whole number"),
        ({"rope_theta": -1}, "rope_theta=-1 must be a number greater than 0"),
    ],
)
def test_what_the_model_cannot_do_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_huggingface(LLAMA_8B | change)


def test_a_sliding_window_must_hold_the_context() -> None:
    assert from_huggingface(MISTRAL_7B).rope_theta == 1e6
    early = MISTRAL_7B | {"sliding_window": 4096}
    with pytest.raises(ConfigError, match=r"sliding_window=4096 .* context of 32768 tokens.*seq_length=4096"):
        from_huggingface(early)
    assert from_huggingface(early, seq_length=4096).seq_length == 4096
    del early["sliding_window"]  # transformers takes 4096 then
    with pytest.raises(ConfigError, match="sliding_window=4096"):
        from_huggingface(early)


def test_a_model_that_no_class_can_hold_is_not_written() -> None:
    with pytest.raises(ConfigError, match=r"rotary_percent=0.5 cannot be written as LlamaForCausalLM"):
        to_huggingface(GPTConfig(rotary_percent=0.5))
    with pytest.raises(ConfigError, match=r"rope_scaling=.* cannot be written as MistralForCausalLM"):
        to_huggingface(GPTConfig(rope_scaling=RopeScaling()), architecture="MistralForCausalLM")
    with pytest.raises(ConfigError, match=r"architecture='MistralForCausaLM' is not supported; did you mean"):
        to_huggingface(GPTConfig(), architecture="MistralForCausaLM")


def test_reading_a_configuration_imports_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from nemorun.llm.huggingface import from_huggingface, read_config;"
        "print([m for m in ('torch', 'numpy', 'safetensors') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
