"""Mistral 7B v0.3."""

from __future__ import annotations

from nemorun.config import Partial, factory
from nemorun.llm.shapes import mistral_7b
from nemorun.recipes.common import Peft, TextPath, finetuning, placement, pretraining
from nemorun.training import ParallelismConfig


@factory
def mistral_7b_pretrain(
    data_path: TextPath = None,
    tokenizer_path: str | None = None,
    max_steps: int = 300_000,
    num_gpus: int | None = None,
    num_nodes: int | None = None,
    num_gpus_per_node: int | None = None,
) -> Partial:
    """Pre-train Mistral 7B on 4096 tokens of context: one node of 8 GPUs, FSDP.

    Args:
        data_path: Text, or what `nemorun data tokenize` made of it: a path, a list, or paths with weights.
            None: the sources of Python's standard library.
        tokenizer_path: A folder with tokenizer.json, or a name on the hub. None: that of the data, or bytes.
        max_steps: Optimizer steps.
        num_gpus: GPUs in all. None: num_nodes x num_gpus_per_node.
        num_nodes: None: 1.
        num_gpus_per_node: None: 8.
    """
    return pretraining(
        mistral_7b(),
        placement(num_gpus, num_nodes, num_gpus_per_node, nodes=1),
        data_path,
        tokenizer_path,
        max_steps,
        lr=3e-4,
        global_batch_size=512,
    )


@factory
def mistral_7b_finetune(
    data_path: str | None = None,
    tokenizer_path: str | None = None,
    checkpoint_path: str | None = None,
    peft: Peft | None = "lora",
    packing: bool = False,
    max_steps: int = 1000,
    num_gpus: int | None = None,
    num_nodes: int | None = None,
    num_gpus_per_node: int | None = None,
) -> Partial:
    """Fine-tune Mistral 7B: one node of 8 GPUs; TP2 where all weights are trained.

    Args:
        data_path: A .jsonl file with examples, or a folder of such files.
        tokenizer_path: A folder with tokenizer.json, or a name on the hub. None: the checkpoint's.
        checkpoint_path: The Hugging Face folder to start from. None: random weights.
        peft: "lora" trains adapters, None all weights.
        packing: Put several examples into one row; 8 rows a step instead of 128.
        max_steps: Optimizer steps.
        num_gpus: GPUs in all. None: num_nodes x num_gpus_per_node.
        num_nodes: None: 1.
        num_gpus_per_node: None: 8.
    """
    return finetuning(
        mistral_7b(),
        placement(num_gpus, num_nodes, num_gpus_per_node, nodes=1),
        data_path,
        tokenizer_path,
        checkpoint_path,
        max_steps,
        packing,
        peft=peft,
        parallelism=ParallelismConfig(tensor_parallel=1 if peft else 2),
    )
