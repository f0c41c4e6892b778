"""The shapes of well-known models. Importing it imports no torch.

Each takes changes to its fields: `llama3_8b(seq_length=4096)`. `seq_length` is what recipes train with; the
models themselves were trained for longer contexts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nemorun.llm.config import GPTConfig, LoraConfig, LoraTarget, RopeScaling

_ATTENTION: tuple[LoraTarget, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


def llama3_8b(**changes: Any) -> GPTConfig:
    """Llama 3.1 8B."""
    return replace(_llama3(4096, 32, 32, 14336), **{"lora": LoraConfig(rank=8, alpha=16), **changes})


def llama3_70b(**changes: Any) -> GPTConfig:
    """Llama 3.1 70B."""
    return replace(_llama3(8192, 80, 64, 28672), **changes)


def llama3_405b(**changes: Any) -> GPTConfig:
    """Llama 3.1 405B."""
    return replace(_llama3(16384, 126, 128, 53248), **changes)


def mistral_7b(**changes: Any) -> GPTConfig:
    """Mistral 7B v0.3, which has no sliding window."""
    return replace(_mistral(vocab_size=32768), **changes)


def mixtral_8x7b(**changes: Any) -> GPTConfig:
    """Mixtral 8x7B: eight experts, of which each token takes two. LoRA adapts its attention."""
    lora = LoraConfig(rank=32, alpha=32, targets=_ATTENTION)
    return replace(_mistral(vocab_size=32000), **{"num_experts": 8, "lora": lora, **changes})


def nemotron_4_15b(**changes: Any) -> GPTConfig:
    """Nemotron-4 15B."""
    return replace(_nemotron(6144, 32, 48, 24576), **changes)


def nemotron_4_340b(**changes: Any) -> GPTConfig:
    """Nemotron-4 340B."""
    return replace(_nemotron(18432, 96, 96, 73728), **changes)


def _llama3(hidden: int, layers: int, heads: int, ffn: int) -> GPTConfig:
    return GPTConfig(
        hidden_size=hidden,
        num_layers=layers,
        num_attention_heads=heads,
        num_query_groups=8,
        ffn_hidden_size=ffn,
        vocab_size=128256,
        rope_theta=5e5,
        rope_scaling=RopeScaling(),
    )


def _mistral(vocab_size: int) -> GPTConfig:
    return GPTConfig(
        hidden_size=4096,
        num_layers=32,
        num_attention_heads=32,
        num_query_groups=8,
        ffn_hidden_size=14336,
        seq_length=4096,
        vocab_size=vocab_size,
        rope_theta=1e6,
        lora=LoraConfig(rank=32, alpha=32),
    )


def _nemotron(hidden: int, layers: int, heads: int, ffn: int) -> GPTConfig:
    return GPTConfig(
        hidden_size=hidden,
        num_layers=layers,
        num_attention_heads=heads,
        num_query_groups=8,
        ffn_hidden_size=ffn,
        seq_length=4096,
        vocab_size=256000,
        activation="squared_relu",
        normalization="layernorm1p",
        rope_theta=1e4,
        rotary_percent=0.5,
        lora=LoraConfig(rank=32, alpha=32),
    )
