"""The classes of transformers whose models can be read and written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Architecture:
    """What a model class of transformers fixes, and how its config.json calls things."""

    name: str
    model_type: str
    defaults: Mapping[str, Any]
    """What transformers takes for a key that config.json lacks, where the model depends on it."""
    hidden_act: str = "silu"
    activation: Literal["swiglu", "squared_relu"] = "swiglu"
    normalization: Literal["rmsnorm", "layernorm1p"] = "rmsnorm"
    eps_key: str = "rms_norm_eps"
    llama3_rope: bool = False
    partial_rotary: bool = False
    experts: bool = False
    own_keys: Mapping[str, Any] = field(default_factory=dict)
    """What its config.json says besides."""


_NO_BIASES = {"attention_bias": False, "mlp_bias": False}
_NO_WINDOW = {"sliding_window": None}

ARCHITECTURES = {
    one.name: one
    for one in (
        Architecture(
            "LlamaForCausalLM",
            "llama",
            {"rms_norm_eps": 1e-6, "rope_theta": 1e4},
            llama3_rope=True,
            own_keys=_NO_BIASES,
        ),
        Architecture(
            "MistralForCausalLM",
            "mistral",
            {"num_key_value_heads": 8, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "sliding_window": 4096},
            own_keys=_NO_WINDOW,
        ),
        Architecture(
            "MixtralForCausalLM",
            "mixtral",
            {
                "num_key_value_heads": 8,
                "rms_norm_eps": 1e-5,
                "rope_theta": 1e6,
                "router_aux_loss_coef": 0.001,
            },
            experts=True,
            own_keys=_NO_WINDOW,
        ),
        Architecture(
            "NemotronForCausalLM",
            "nemotron",
            {"norm_eps": 1e-5, "rope_theta": 1e4, "partial_rotary_factor": 0.5},
            hidden_act="relu2",
            activation="squared_relu",
            normalization="layernorm1p",
            eps_key="norm_eps",
            partial_rotary=True,
            own_keys=_NO_BIASES,
        ),
    )
}
