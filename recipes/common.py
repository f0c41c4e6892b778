"""What the recipes of all families share: where they run, and NeMo's rates, schedules and batches."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from nemorun.config import Partial
from nemorun.errors import ConfigError
from nemorun.llm import DataConfig, FinetuneDataConfig, GPTConfig, finetune, pretrain
from nemorun.training import CheckpointConfig, OptimConfig, ParallelismConfig, TrainerConfig

GPUS_OF_A_NODE = 8
Peft = Literal["lora"]
TextPath = str | list[str | Path] | dict[str, float] | None


def placement(
    num_gpus: int | None, num_nodes: int | None, num_gpus_per_node: int | None, nodes: int
) -> tuple[int, int]:
    """Nodes and GPUs on each; `nodes` are the recipe's own. Raises ConfigError where the numbers disagree."""
    if num_gpus is None:
        return num_nodes or nodes, num_gpus_per_node or GPUS_OF_A_NODE
    on_each = num_gpus_per_node or max(1, min(num_gpus, GPUS_OF_A_NODE))
    if num_nodes and not num_gpus_per_node:
        on_each = max(1, num_gpus // num_nodes)
    needed = num_nodes or max(1, num_gpus // on_each)
    if num_gpus != needed * on_each:
        raise ConfigError(
            f"num_gpus={num_gpus} are not num_nodes={needed} x num_gpus_per_node={on_each}: num_gpus are all "
            "of them; leave it out, or one of the others"
        )
    return needed, on_each


def pretraining(
    model: GPTConfig,
    place: tuple[int, int],
    data_path: TextPath,
    tokenizer_path: str | None,
    max_steps: int,
    *,
    lr: float,
    global_batch_size: int,
    parallelism: ParallelismConfig | None = None,
    schedule: Literal["cosine", "constant"] = "cosine",
    warmup_steps: int = 2000,
    reshard_after_forward: bool = True,
) -> Partial:
    """Adam with β 0.9 and 0.95, eps 1e-5, decay 0.1; a cosine goes down to a tenth of the rate."""
    return Partial(
        pretrain,
        model=model,
        trainer=_trainer(place, max_steps, val_interval=2000, reshard=reshard_after_forward),
        data=DataConfig(
            path=data_path,
            tokenizer=tokenizer_path,
            global_batch_size=global_batch_size,
        ),
        optim=OptimConfig(lr=lr, schedule=schedule, warmup_steps=warmup_steps),
        parallelism=parallelism or ParallelismConfig(),
        checkpoint=CheckpointConfig(interval=2000),
        sample=None,
    )


def finetuning(
    model: GPTConfig,
    place: tuple[int, int],
    data_path: str | None,
    tokenizer_path: str | None,
    checkpoint_path: str | None,
    max_steps: int,
    packing: bool,
    *,
    peft: Peft | None,
    parallelism: ParallelismConfig,
) -> Partial:
    """LoRA or all weights: rate 1e-4 or 5e-6, warm-up of 50 steps, β2 0.98, a cosine down to 0."""
    if peft not in (None, "lora"):
        raise ConfigError(f"peft={peft!r} is not one of 'lora', None (all weights)")
    model.lora.enabled = peft == "lora"
    return Partial(
        finetune,
        model=model,
        trainer=_trainer(place, max_steps, val_interval=100),
        data=FinetuneDataConfig(
            train_data=data_path or "",
            tokenizer=tokenizer_path or checkpoint_path,  # a checkpoint's folder has its tokenizer
            packing=packing,
            # a packed row holds many examples
            global_batch_size=8 if packing else 128,
            seq_length=2048,
        ),
        optim=OptimConfig(lr=1e-4 if peft else 5e-6, min_lr=0.0, warmup_steps=50, betas=(0.9, 0.98)),
        parallelism=parallelism,
        checkpoint=CheckpointConfig(interval=100),
        base=checkpoint_path,
    )


def _trainer(
    place: tuple[int, int], max_steps: int, val_interval: int, reshard: bool = True
) -> TrainerConfig:
    nodes, devices = place
    return TrainerConfig(
        max_steps=max_steps,
        precision="bf16-mixed",
        accelerator="gpu",
        devices=devices,
        num_nodes=nodes,
        reshard_after_forward=reshard,
        val_interval=val_interval,
    )
