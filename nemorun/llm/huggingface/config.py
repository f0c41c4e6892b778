"""`config.json` of a Hugging Face checkpoint to a `GPTConfig`, and back. Imports no torch.

What the model cannot do is refused by its key: a checkpoint must not load and then compute something else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from nemorun.errors import ConfigError, did_you_mean
from nemorun.llm.config import GPTConfig, RopeScaling
from nemorun.llm.huggingface.architectures import ARCHITECTURES, Architecture

_SIZES = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "ffn_hidden_size": "intermediate_size",
    "vocab_size": "vocab_size",
}


def read_config(folder: str | Path, seq_length: int | None = None) -> GPTConfig:
    """The model in a Hugging Face folder. Raises ConfigError."""
    return from_huggingface(read_json(Path(folder), "config.json"), seq_length)


def check_base(folder: str | Path, model: GPTConfig) -> None:
    """Raises ConfigError where the checkpoint is of another model, with what is written in both.

    The context, the adapters and what only matters in training may differ.
    """
    theirs = read_config(folder, model.seq_length)
    shape = ("kv_channels", "num_query_groups", "ffn_hidden_size")  # None stands for what follows from others
    free = {*shape, "seq_length", "lora", "init_std", "aux_loss_coeff"}
    names = [field.name for field in fields(GPTConfig) if field.name not in free]
    different = [
        f"{name}={getattr(theirs, name)!r} there and {getattr(model, name)!r} here"
        for name in (*names, "head_dim", "kv_heads", "ffn_size")
        if getattr(theirs, name) != getattr(model, name)
    ]
    if different:
        raise ConfigError(
            f"base={folder} is of another model: {'; '.join(different)}. Take another folder, or change model"
        )


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of a checkpoint's folder. Raises ConfigError where there is none."""
    path = folder.expanduser() / name
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}): name a folder on this machine, as save_pretrained of "
            "transformers writes it"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path} must hold a JSON object")
    return found


def from_huggingface(config: Mapping[str, Any], seq_length: int | None = None) -> GPTConfig:
    """The model that a config.json describes; `seq_length` (None: all positions) is the context to be used.

    Raises ConfigError that names the key, its value and what can be had.
    """
    architecture = _architecture(config)
    config = {**architecture.defaults, **_flat_rope(config)}
    sizes: dict[str, Any] = {ours: _number(config, theirs) for ours, theirs in _SIZES.items()}
    context = seq_length or _number(config, "max_position_embeddings")
    _refuse_what_is_not_supported(config, architecture, context)
    head_dim, usual = config.get("head_dim"), sizes["hidden_size"] / sizes["num_attention_heads"]
    experts: dict[str, Any] = {}
    if architecture.experts:
        experts = {
            "num_experts": _number(config, "num_local_experts"),
            "experts_per_token": _number(config, "num_experts_per_tok"),
            "aux_loss_coeff": config["router_aux_loss_coef"],
        }
    result = GPTConfig(
        **sizes,
        num_query_groups=config.get("num_key_value_heads") or sizes["num_attention_heads"],
        kv_channels=None if head_dim == usual else head_dim,
        seq_length=context,
        activation=architecture.activation,
        normalization=architecture.normalization,
        norm_eps=_positive(config, architecture.eps_key),
        rope_theta=_positive(config, "rope_theta"),
        rope_scaling=_rope_scaling(config, architecture),
        rotary_percent=_positive(config, "partial_rotary_factor") if architecture.partial_rotary else 1.0,
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        init_std=config.get("initializer_range", 0.02),
        **experts,
    )
    result.validate()
    return result


def to_huggingface(
    config: GPTConfig, dtype: str = "bfloat16", architecture: str | None = None
) -> dict[str, Any]:
    """The config.json for a model, as an architecture (None: the one that fits) that has its settings.

    A Mistral has the tensors of a Llama: name MistralForCausalLM where it should be one again.
    """
    chosen = _named(architecture or _fitting(config), "architecture")
    wrong = [
        f"{name}={value!r}"
        for name, value, allowed in (
            ("activation", config.activation, config.activation == chosen.activation),
            ("normalization", config.normalization, config.normalization == chosen.normalization),
            ("rotary_percent", config.rotary_percent, chosen.partial_rotary or config.rotary_percent == 1),
            ("rope_scaling", config.rope_scaling, chosen.llama3_rope or config.rope_scaling is None),
            ("num_experts", config.num_experts, chosen.experts == bool(config.num_experts)),
        )
        if not allowed
    ]
    if wrong:
        raise ConfigError(
            f"a model with {', '.join(wrong)} cannot be written as {chosen.name}; Hugging Face models that "
            f"can be written: {', '.join(ARCHITECTURES)}"
        )
    result: dict[str, Any] = {"architectures": [chosen.name], "model_type": chosen.model_type}
    result |= {theirs: getattr(config, ours) for ours, theirs in _SIZES.items()}
    result |= {
        "intermediate_size": config.ffn_size,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.seq_length,
        "hidden_act": chosen.hidden_act,
        chosen.eps_key: config.norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.init_std,
        "attention_dropout": 0.0,
        "torch_dtype": dtype,
        "use_cache": True,
    }
    result |= chosen.own_keys
    if chosen.llama3_rope:
        result["rope_scaling"] = _written_scaling(config.rope_scaling)
    if chosen.partial_rotary:
        result["partial_rotary_factor"] = config.rotary_percent
    if chosen.experts:
        result |= {
            "num_local_experts": config.num_experts,
            "num_experts_per_tok": config.experts_per_token,
            "router_aux_loss_coef": config.aux_loss_coeff,
        }
    return result


def _architecture(config: Mapping[str, Any]) -> Architecture:
    names = config.get("architectures") or []
    if not names:  # written by hand: the type tells it as well
        for one in ARCHITECTURES.values():
            if one.model_type == config.get("model_type"):
                return one
    return _named(str(names[0]) if names else "", "architectures")


def _named(name: str, key: str) -> Architecture:
    if name not in ARCHITECTURES:
        raise ConfigError(
            f"{key}={name!r} is not supported{did_you_mean(name, ARCHITECTURES) or '.'} "
            f"There are: {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]


def _fitting(config: GPTConfig) -> str:
    if config.num_experts:
        return "MixtralForCausalLM"
    return "NemotronForCausalLM" if config.activation == "squared_relu" else "LlamaForCausalLM"


def _number(config: Mapping[str, Any], key: str) -> int:
    value: Any = config.get(key)
    if type(value) is not int or value < 1:
        raise ConfigError(f"config.json: {key}={value!r} must be a whole number of at least 1")
    return value


def _positive(config: Mapping[str, Any], key: str) -> float:
    value: Any = config.get(key)
    if type(value) not in (int, float) or not value > 0:
        raise ConfigError(f"config.json: {key}={value!r} must be a number greater than 0")
    return float(value)


def _refuse_what_is_not_supported(
    config: Mapping[str, Any], architecture: Architecture, context: int
) -> None:
    allowed: dict[str, tuple[Any, ...]] = {
        "hidden_act": (architecture.hidden_act,),
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
        "attention_dropout": (0, None),
        "router_jitter_noise": (0, None),
        "quantization_config": (None,),
    }
    for key, values in allowed.items():
        if key in config and config[key] not in values:
            raise ConfigError(
                f"config.json: {key}={config[key]!r} is not supported for {architecture.name}: "
                f"only {values[0]!r}"
            )
    window = config.get("sliding_window")
    if window is not None and window < context:
        raise ConfigError(
            f"config.json: sliding_window={window} is not supported for a context of {context} tokens: only "
            f"null, or a window that holds the whole context. Ask for seq_length={window} or less, or take a "
            "later version of the model (Mistral 7B v0.3 has no window)"
        )


def _flat_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys about rotary embeddings beside the others: transformers 5 keeps them in `rope_parameters`."""
    nested = (config.get("rope_scaling") or {}) | (config.get("rope_parameters") or {})
    return {**config, **nested}


def _rope_scaling(config: Mapping[str, Any], architecture: Architecture) -> RopeScaling | None:
    kind = config.get("rope_type", config.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3" or not architecture.llama3_rope:
        supported = "default or llama3" if architecture.llama3_rope else "default"
        raise ConfigError(
            f"config.json: rope_type={kind!r} is not supported for {architecture.name}: only {supported}"
        )
    return RopeScaling(
        factor=_positive(config, "factor"),
        low_freq_factor=_positive(config, "low_freq_factor"),
        high_freq_factor=_positive(config, "high_freq_factor"),
        original_context=_number(config, "original_max_position_embeddings"),
    )


def _written_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_context,
    }
