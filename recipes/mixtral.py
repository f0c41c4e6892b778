"""Mixtral 8x7B."""

from __future__ import annotations

from nemorun.config import Partial, factory
from nemorun.llm.shapes import mixtral_8x7b as shape
from nemorun.recipes.common import Peft, TextPath, finetuning, placement, pretraining
from nemorun.training import ParallelismConfig


@factory
def mixtral_8x7b(
    data_path: TextPath = None,
    tokenizer_path: str | None = None,
    max_steps: int = 300_000,
    num_gpus: int | None = None,
    num_nodes: int | None = None,
    num_gpus_per_node: int | None = None,
) -> Partial:
    """Pre-train Mixtral 8x7B on 4096 tokens of context: 8 nodes, PP4 in 8 pieces each, EP8.

    Args:
        data_path: Text, or what `nemorun data tokenize` made of it: a path, a list, or paths with weights.
            None: the sources of Python's standard library.
        tokenizer_path: A folder with tokenizer.json, or a name on the hub. None: that of the data, or bytes.
        max_steps: Optimizer steps.
        num_gpus: GPUs in all. None: num_nodes x num_gpus_per_node.
        num_nodes: None: 8.
        num_gpus_per_node: None: 8.
    """
    return pretraining(
        shape(),
        placement(num_gpus, num_nodes, num_gpus_per_node, nodes=8),
        data_path,
        tokenizer_path,
        max_steps,
        lr=3e-4,
        global_batch_size=512,
        parallelism=ParallelismConfig(pipeline_parallel=4, virtual_pipeline=8, expert_parallel=8),
    )


@factory
def mixtral_8x7b_finetune(
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
    """Fine-tune Mixtral 8x7B with EP8: one node, or 4 where all weights are trained.

    Args:
        data_path: A .jsonl file with examples, or a folder of such files.
        tokenizer_path: A folder with tokenizer.json, or a name on the hub. None: the checkpoint's.
        checkpoint_path: The Hugging Face folder to start from. None: random weights.
        peft: "lora" trains adapters, None all weights.
        packing: Put several examples into one row; 8 rows a step instead of 128.
        max_steps: Optimizer steps.
        num_gpus: GPUs in all. None: num_nodes x num_gpus_per_node.
        num_nodes: None: 1, or 4 without peft.
        num_gpus_per_node: None: 8.
    """
    return finetuning(
        shape(),
        placement(num_gpus, num_nodes, num_gpus_per_node, nodes=1 if peft else 4),
        data_path,
        tokenizer_path,
        checkpoint_path,
        max_steps,
        packing,
        peft=peft,
        parallelism=ParallelismConfig(expert_parallel=8),
    )
