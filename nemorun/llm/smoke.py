"""A run that shows that a recipe works, on any machine: same family, same kinds of parallelism, tiny sizes.

Three steps on the CPU, on bundled text. Each kind of parallelism that the recipe has is kept, by two ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from nemorun.llm.config import GPTConfig
from nemorun.llm.data.config import FinetuneDataConfig
from nemorun.training.config import ParallelismConfig, TrainerConfig

STEPS = 3
EXAMPLES = "nemorun:examples"
"""`data.train_data` of a smoke run: the examples that come with nemorun, wherever it is installed."""
_VOCABULARY = 264  # bytes need 257; divisible by two
_LENGTH = 128


def smoke(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What replaces the arguments of `pretrain` or `finetune`."""
    parallelism = _parallelism(arguments["parallelism"])
    data_ranks = _data_ranks(parallelism)
    data = arguments["data"]
    result: dict[str, Any] = {
        "model": _model(arguments["model"], parallelism),
        "trainer": _trainer(arguments["trainer"], data_ranks * parallelism.ranks_of_a_model),
        "parallelism": parallelism,
        "data": _with(
            data,
            path=None,
            train_data=EXAMPLES,
            val_path=None,
            val_data=None,
            tokenizer="bytes",
            chat_template=None,
            seq_length=_LENGTH,
            micro_batch_size=1,
            # as many micro-batches as stages, so that the pipeline is filled
            global_batch_size=data_ranks * max(2, parallelism.pipeline_parallel),
        ),
        "optim": _with(arguments["optim"], warmup_steps=1),
        # its own folders: a real run's are not touched
        "checkpoint": _with(arguments["checkpoint"], interval=0, dir=None),
        "log": _with(arguments["log"], dir=None),
    }
    for name in ("base", "sample"):
        if name in arguments:
            result[name] = None
    return result


def with_examples(data: FinetuneDataConfig) -> FinetuneDataConfig:
    """The data with the path that bundled examples have on this machine."""
    if data.train_data != EXAMPLES:
        return data
    return replace(data, train_data=Path(__file__).with_name("examples.jsonl"))


def _parallelism(config: ParallelismConfig) -> ParallelismConfig:
    degrees = {
        name: min(2, getattr(config, name))
        for name in (
            "tensor_parallel",
            "pipeline_parallel",
            "virtual_pipeline",
            "context_parallel",
            "expert_parallel",
            "replicate",
        )
    }
    return replace(config, data_parallel=None, async_tensor_parallel=False, **degrees)


def _data_ranks(parallelism: ParallelismConfig) -> int:
    """The fewest that replicas and experts can be made of; two where nothing else needs a second rank."""
    experts = max(1, parallelism.expert_parallel // parallelism.context_parallel)
    ranks = parallelism.replicate * experts
    return max(ranks, 2) if parallelism.ranks_of_a_model == 1 else ranks


def _model(config: GPTConfig, parallelism: ParallelismConfig) -> GPTConfig:
    grouped = config.kv_heads < config.num_attention_heads
    scaling = config.rope_scaling
    return replace(
        config,
        hidden_size=64,
        num_layers=max(2, parallelism.pipeline_parallel * parallelism.virtual_pipeline),
        num_attention_heads=4,
        num_query_groups=2 if grouped else None,
        # heads that are wider than their share stay so
        kv_channels=None if config.kv_channels is None else 24,
        ffn_hidden_size=128,
        seq_length=_LENGTH,
        vocab_size=_VOCABULARY,
        num_experts=min(4, config.num_experts),
        experts_per_token=min(2, config.experts_per_token),
        rope_scaling=None if scaling is None else replace(scaling, original_context=16),
        lora=replace(config.lora, rank=min(4, config.lora.rank)),
    )


def _trainer(config: TrainerConfig, ranks: int) -> TrainerConfig:
    return replace(
        config,
        max_steps=min(STEPS, config.max_steps),
        precision="fp32",
        accelerator="cpu",
        devices=ranks,
        num_nodes=1,
        compile=False,
        val_interval=0,
        val_batches=1,
        log_interval=1,
    )


def _with(config: Any, **changes: Any) -> Any:
    """The dataclass with those of the changes for which it has a field."""
    assert is_dataclass(config) and not isinstance(config, type)
    known = {field.name for field in fields(config)}
    return replace(config, **{name: value for name, value in changes.items() if name in known})
