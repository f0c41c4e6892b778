"""LoRA adapters in PEFT's format: `adapter_model.safetensors` and `adapter_config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch.distributed as dist
from torch import Tensor

from nemorun.errors import ConfigError
from nemorun.llm.config import GPTConfig, LoraConfig, LoraTarget
from nemorun.llm.huggingface.config import read_json
from nemorun.llm.huggingface.files import SINGLE, TensorFiles
from nemorun.llm.huggingface.folders import publishing
from nemorun.llm.huggingface.gathering import Gatherer
from nemorun.llm.huggingface.names import Entry, adapter_entries
from nemorun.llm.huggingface.reading import fill
from nemorun.llm.huggingface.writing import DTYPES, split

_STEM = "adapter_model"
_CONFIG = "adapter_config.json"
#: What PEFT can do and the model cannot: key -> the values that mean "not used".
_UNUSED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "use_qalora": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layers_to_transform": (None, []),
    "layer_replication": (None, []),
    "modules_to_save": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, []),
    "exclude_modules": (None, []),
    "megatron_config": (None,),
}


def read_lora(folder: str | Path) -> LoraConfig:
    """The adapters in a PEFT folder. Raises ConfigError that names a setting the model does not have."""
    found = read_json(Path(folder), _CONFIG)
    for key, values in _UNUSED.items():
        if key in found and found[key] not in values:
            raise ConfigError(
                f"{Path(folder) / _CONFIG}: {key}={found[key]!r} is not supported, only {values[0]!r}"
            )
    known = get_args(LoraTarget)
    targets = found.get("target_modules")
    if not isinstance(targets, list) or not {*targets} <= {*known}:
        raise ConfigError(
            f"{Path(folder) / _CONFIG}: target_modules={targets!r} is not supported, only a list of some of "
            f"{', '.join(known)}"
        )
    result = LoraConfig(
        enabled=True,
        rank=found.get("r", 8),
        alpha=float(found.get("lora_alpha", 8)),
        dropout=float(found.get("lora_dropout", 0.0)),
        targets=tuple(one for one in known if one in targets),
    )
    result.validate()
    return result


def read_adapter(folder: str | Path, parameters: Mapping[str, Tensor], config: GPTConfig) -> None:
    """Fill this rank's `lora_a` and `lora_b`, by their global names, from a PEFT folder; all else stays.

    `config.lora` must have the folder's rank and targets (`read_lora` tells them). Raises TrainingError where
    a tensor is missing, superfluous or of another shape, and then nothing has been changed.
    """
    entries = list(adapter_entries(config))
    adapters = {name: one for name, one in parameters.items() if name.endswith((".lora_a", ".lora_b"))}
    fill(adapters, entries, TensorFiles(folder, _STEM))


def write_adapter(
    folder: str | Path,
    parameters: Mapping[str, Tensor],
    config: GPTConfig,
    *,
    base: str | Path | None = None,
    overwrite: bool = False,
    group: dist.ProcessGroup | None = None,
) -> None:
    """Write the adapters, in float32, to a new folder that PEFT loads. Every rank of `group` calls it.

    `base` is the model that they were trained on: a folder, or a name on the hub. `overwrite` lets it take
    the place of a folder that is there already. Raises TrainingError, on all ranks alike.
    """
    entries = list(adapter_entries(config))
    names = [entry.name for entry in entries]
    gatherer = Gatherer(names, parameters, group)
    gatherer.require(names)
    with publishing(Path(folder), gatherer, overwrite) as target:
        found: dict[str, Tensor] = {}
        for entry in entries:
            whole = gatherer.take(entry.name, entry.shape)
            if whole is not None:
                found |= split(whole, entry, DTYPES["float32"])
        target.save(SINGLE.format(stem=_STEM), found)
        target.write_json(_CONFIG, _described(config, entries, base))


def _described(config: GPTConfig, entries: list[Entry], base: str | Path | None) -> dict[str, Any]:
    adapted = {part.name.split(".")[-3] for entry in entries for part in entry.parts}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None if base is None else str(base),
        "r": config.lora.rank,
        "lora_alpha": int(alpha) if (alpha := float(config.lora.alpha)).is_integer() else alpha,
        "lora_dropout": config.lora.dropout,
        "target_modules": [one for one in get_args(LoraTarget) if one in adapted],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
