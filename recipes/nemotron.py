"""Nemotron-4 15B and 340B."""

from __future__ import annotations

from nemorun.config import Partial, factory
from nemorun.llm.shapes import nemotron_4_15b as shape_15b
from nemorun.llm.shapes import nemotron_4_340b as shape_340b
from nemorun.recipes.common import Peft, TextPath, finetuning, placement, pretraining
from nemorun.training import ParallelismConfig


@factory
def nemotron_4_15b(
    data_path: TextPath = None,
    tokenizer_path: str | None = None,
    max_steps: int = 300_000,
    num_gpus: int | None = None,
    num_nodes: int | None = None,
    num_gpus_per_node: int | None = None,
) -> Partial:
    """Pre-train Nemotron-4 15B on 4096 tokens of context: one node of 8 GPUs, TP4.

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
        shape_15b(),
        placement(num_gpus, num_nodes, num_gpus_per_node, nodes=1),
        data_path,
        tokenizer_path,
        max_steps,
        lr=4.5e-5,
        global_batch_size=32,
        schedule="constant",
        warmup_steps=500,
        parallelism=ParallelismConfig(tensor_parallel=4),
    )


@factory
def nemotron_4_15b_finetune(
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
    """Fine-tune Nemotron-4 15B: one node of 8 GPUs, TP2; TP4 where all weights are trained.

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
        shape_15b(),
        placement(num_gpus, num_nodes, num_gpus_per_node, nodes=1),
        data_path,
        tokenizer_path,
        checkpoint_path,
        max_steps,
        packing,
        peft=peft,
        parallelism=ParallelismConfig(tensor_parallel=2 if peft else 4),
    )


@factory
def nemotron_4_340b(
    data_path: TextPath = None,
    tokenizer_path: str | None = None,
    max_steps: int = 300_000,
    num_gpus: int | None = None,
    num_nodes: int | None = None,
    num_gpus_per_node: int | None = None,
) -> Partial:
    """Pre-train Nemotron-4 340B on 4096 tokens of context: 768 nodes, TP8, PP12 in 8 pieces each, CP2.

    Args:
        data_path: Text, or what `nemorun data tokenize` made of it: a path, a list, or paths with weights.
            None: the sources of Python's standard library.
        tokenizer_path: A folder with tokenizer.json, or a name on the hub. None: that of the data, or bytes.
        max_steps: Optimizer steps.
        num_gpus: GPUs in all. None: num_nodes x num_gpus_per_node.
        num_nodes: None: 768.
        num_gpus_per_node: None: 8.
    """
    return pretraining(
        shape_340b(),
        placement(num_gpus, num_nodes, num_gpus_per_node, nodes=768),
        data_path,
        tokenizer_path,
        max_steps,
        lr=1e-4,
        global_batch_size=2304,
        warmup_steps=500,
        parallelism=ParallelismConfig(
            tensor_parallel=8, pipeline_parallel=12, virtual_pipeline=8, context_parallel=2
        ),
    )


@factory
def nemotron_4_340b_finetune(
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
    """Fine-tune Nemotron-4 340B: 4 nodes, TP8 x PP4, or 32 nodes, TP8 x PP8 where all weights are trained.

    Args:
        data_path: A .jsonl file with examples, or a folder of such files.
        tokenizer_path: A folder with tokenizer.json, or a name on the hub. None: the checkpoint's.
        checkpoint_path: The Hugging Face folder to start from. None: random weights.
        peft: "lora" trains adapters, None all weights.
        packing: Put several examples into one row; 8 rows a step instead of 128.
        max_steps: Optimizer steps.
        num_gpus: GPUs in all. None: num_nodes x num_gpus_per_node.
        num_nodes: None: 4, or 32 without peft.
        num_gpus_per_node: None: 8.
    """
    return finetuning(
        shape_340b(),
        placement(num_gpus, num_nodes, num_gpus_per_node, nodes=4 if peft else 32),
        data_path,
        tokenizer_path,
        checkpoint_path,
        max_steps,
        packing,
        peft=peft,
        parallelism=ParallelismConfig(tensor_parallel=8, pipeline_parallel=4 if peft else 8),
    )
