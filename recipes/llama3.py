"""Llama 3.1 8B and 70B."""

from __future__ import annotations

from nemorun.config import Partial, factory
from nemorun.llm.shapes import llama3_8b, llama3_70b
from nemorun.recipes.common import Peft, TextPath, finetuning, placement, pretraining
from nemorun.training import ParallelismConfig


@factory
def llama3_8b_pretrain(
    data_path: TextPath = None,
    tokenizer_path: str | None = None,
    max_steps: int = 300_000,
    num_gpus: int | None = None,
    num_nodes: int | None = None,
    num_gpus_per_node: int | None = None,
) -> Partial:
    """Pre-train Llama 3.1 8B on 8192 tokens of context: one node of 8 GPUs, FSDP.

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
        llama3_8b(),
        placement(num_gpus, num_nodes, num_gpus_per_node, nodes=1),
        data_path,
        tokenizer_path,
        max_steps,
        lr=3e-4,
        global_batch_size=512,
        reshard_after_forward=False,  # 14 GiB, which 80 GiB of 8 GPUs have: 2 % faster
    )


@factory
def llama3_8b_finetune(
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
    """Fine-tune Llama 3.1 8B: one node of 8 GPUs; TP2 where all weights are trained.

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
        llama3_8b(),
        placement(num_gpus, num_nodes, num_gpus_per_node, nodes=1),
        data_path,
        tokenizer_path,
        checkpoint_path,
        max_steps,
        packing,
        peft=peft,
        parallelism=ParallelismConfig(tensor_parallel=1 if peft else 2),
    )


@factory
def llama3_70b_pretrain(
    data_path: TextPath = None,
    tokenizer_path: str | None = None,
    max_steps: int = 300_000,
    num_gpus: int | None = None,
    num_nodes: int | None = None,
    num_gpus_per_node: int | None = None,
) -> Partial:
    """Pre-train Llama 3.1 70B on 8192 tokens of context: 4 nodes, TP4, PP4 in 5 pieces each, CP2.

    Args:
        data_path: Text, or what `nemorun data tokenize` made of it: a path, a list, or paths with weights.
            None: the sources of Python's standard library.
        tokenizer_path: A folder with tokenizer.json, or a name on the hub. None: that of the data, or bytes.
        max_steps: Optimizer steps.
        num_gpus: GPUs in all. None: num_nodes x num_gpus_per_node.
        num_nodes: None: 4.
        num_gpus_per_node: None: 8.
    """
    return pretraining(
        llama3_70b(),
        placement(num_gpus, num_nodes, num_gpus_per_node, nodes=4),
        data_path,
        tokenizer_path,
        max_steps,
        lr=3e-4,
        global_batch_size=512,
        parallelism=ParallelismConfig(
            tensor_parallel=4, pipeline_parallel=4, virtual_pipeline=5, context_parallel=2
        ),
    )


@factory
def llama3_70b_finetune(
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
    """Fine-tune Llama 3.1 70B: one node and TP8, or 4 nodes and TP8 x PP4 where all weights are trained.

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
        llama3_70b(),
        placement(num_gpus, num_nodes, num_gpus_per_node, nodes=1 if peft else 4),
        data_path,
        tokenizer_path,
        checkpoint_path,
        max_steps,
        packing,
        peft=peft,
        parallelism=ParallelismConfig(tensor_parallel=8, pipeline_parallel=1 if peft else 4),
    )
