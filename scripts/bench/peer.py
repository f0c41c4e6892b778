"""What Hugging Face's users run, beside a row of train.py: the same shape, tokens of a step and GPUs.

LoRA is transformers with PEFT on one GPU; all weights are transformers under FSDP2. Both are eager with sdpa
and recompute every layer in the backward pass: else activations and the whole batch's logits, which
transformers keeps, need more than a GPU of 80 GB has. Liger's kernels are used where they are installed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import timedelta
from importlib import metadata
from importlib.util import find_spec
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from step_times import said_jitter, summary

if TYPE_CHECKING:
    import torch

    from nemorun.llm import GPTConfig

#: The rows that have a peer: not those in float8, of packed documents, with bf16 moments or split by tensors.
ROWS = ("pretrain", "pretrain-1", "lora", "lora-2")


def beside(row: dict[str, Any], gpus: int, start: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """The peer's result, started as a row of ours is; `error` is a sentence about why there is none.

    Where the row's tokens do not fit, it gets one sequence a GPU.
    """
    needed = ["transformers", "peft"] if "lora" in row.get("model", {}) else ["transformers"]
    missing = [name for name in needed if not find_spec(name)]
    if missing:
        return {"error": f"not run: {' and '.join(missing)} not installed"}
    for rows in dict.fromkeys((row["rows"], 1)):
        found = start({**row, "rows": rows, "peer": True}, gpus)
        output = found.get("error", "")
        if "out of memory" not in output:
            break
    else:
        return {"error": "not run: one sequence a GPU does not fit into its memory", "output": output}
    if output:
        said = [line for line in output.splitlines() if "Error" in line] or output.splitlines() or [""]
        return {"error": f"failed: {said[-1].strip()[:160]}", "output": output}
    return found


def line(found: dict[str, Any], ours: float | None) -> str:
    """The peer's line in the table; `ours` is the speed of the row above it, where there is one."""
    if "error" in found:
        return f"{'  transformers':<22} {found['error']}"
    speed = found["tokens_per_second_per_gpu"]
    ratio = f"ours/peer {ours / speed:>5.2f}" if ours else ""
    return (
        f"{'  transformers':<22} {speed:>12,.0f} {ratio:>15} {'':>16} {said_jitter(found['jitter'])} "
        f"{found['gib']:>6.1f} {found['how']}"
    )


# --- what each rank does ---


def train(row: dict[str, Any], config: GPTConfig) -> None:
    import torch
    import torch.distributed as dist

    rank = int(os.environ["RANK"])
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    how = ["transformers", "peft"] if config.lora.enabled else ["transformers"]
    if on_gpu:
        torch.cuda.set_device(device)
        if find_spec("liger_kernel"):
            from liger_kernel.transformers import apply_liger_kernel_to_llama

            apply_liger_kernel_to_llama()
            how.append("liger_kernel")
    if not config.lora.enabled:
        # should a rank run out of memory, the others wait for it no longer than this
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(minutes=2))
    torch.manual_seed(1)
    model = (with_adapters if config.lora.enabled else sharded)(config, device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    numbers = torch.Generator().manual_seed(rank)
    marks: list[Any] = []
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()  # of training, not of making the model
    for _ in range(row["steps"] + 5):
        tokens = torch.randint(0, config.vocab_size, (row["rows"], config.seq_length), generator=numbers)
        tokens = tokens.to(device)
        # fp32 adapters on a bf16 base are multiplied in bf16, as transformers' Trainer does with bf16=True
        with torch.autocast(device.type, torch.bfloat16, enabled=config.lora.enabled):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        marks.append(torch.cuda.Event(enable_timing=True) if on_gpu else time.perf_counter())
        if on_gpu:
            marks[-1].record()
    last = loss.item()  # waits for all that was asked of the device
    times = [a.elapsed_time(b) / 1000 if on_gpu else b - a for a, b in pairwise(marks[4:])]
    steps = summary(times)
    if rank == 0:
        how = [f"{name} {metadata.version(name)}" for name in how]
        how += [f"{row['rows']} x {config.seq_length:,} a GPU", "sdpa", "every layer recomputed"]
        answer = {
            "tokens_per_second_per_gpu": row["rows"] * config.seq_length / steps["median_s"],
            **steps,
            "gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0,
            "rows": row["rows"],
            "trained": sum(p.numel() for p in trained),
            "loss": last,
            "how": ", ".join(how),
        }
        print(json.dumps(answer), flush=True)
    if dist.is_initialized():
        dist.destroy_process_group()


def with_adapters(config: GPTConfig, device: torch.device) -> Any:
    """A frozen bf16 model and adapters in float32, which is how PEFT makes them for it."""
    import peft
    import torch

    lora = config.lora
    adapters = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets), task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(llama(config, device, torch.bfloat16), adapters)


def sharded(config: GPTConfig, device: torch.device) -> Any:
    """Weights and gradient sums in float32, divided among the ranks; products in bf16."""
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    model = llama(config, device, torch.float32)
    precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in model.model.layers:
        fully_shard(layer, mp_policy=precision)
    return fully_shard(model, mp_policy=precision)


def llama(config: GPTConfig, device: torch.device, dtype: torch.dtype) -> Any:
    import torch
    import transformers

    from nemorun.llm.huggingface.config import to_huggingface

    described = transformers.LlamaConfig(**{**to_huggingface(config), "use_cache": False})
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(
            described, dtype=dtype, attn_implementation="sdpa"
        )
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()
