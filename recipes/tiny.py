"""The smallest real training run: what a newcomer watches first."""

from __future__ import annotations

from nemorun.config import Partial, factory
from nemorun.llm.config import GPTConfig
from nemorun.llm.data.config import DataConfig
from nemorun.llm.pretraining import pretrain
from nemorun.training.config import CheckpointConfig, OptimConfig, TrainerConfig


@factory
def tiny_llama_pretrain(data_path: str | None = None, devices: int = 2, max_steps: int = 400) -> Partial:
    """Pre-train a byte-level Llama of 5 M parameters on this Python's own sources: two minutes on two cores.

    Args:
        data_path: A text file, a .jsonl file or a folder to train on. None: the standard library's sources.
        devices: Ranks: processes that share the CPU, or one for each GPU.
        max_steps: Optimizer steps.
    """
    return Partial(
        pretrain,
        model=GPTConfig(
            hidden_size=384,
            num_layers=3,
            num_attention_heads=6,
            num_query_groups=2,
            ffn_hidden_size=1024,
            seq_length=128,
            vocab_size=257,
        ),
        trainer=TrainerConfig(max_steps=max_steps, devices=devices, val_interval=200, precision="auto"),
        data=DataConfig(path=data_path, global_batch_size=8, micro_batch_size=4),
        optim=OptimConfig(lr=2e-3, warmup_steps=40, eps=1e-8),
        checkpoint=CheckpointConfig(interval=200),
    )
