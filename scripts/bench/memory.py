#!/usr/bin/env python3
"""The memory that is predicted, beside the memory that is taken.

    python scripts/bench/memory.py                     every row that this machine's GPUs can show
    python scripts/bench/memory.py --rows pretrain-none lora --json memory.json
    python scripts/bench/memory.py --fake              the same on fake tensors: no GPU, no memory

Rows are Llama 3.1 8B and Mixtral 8x7B at full width, most with fewer layers so that a row takes half a
minute, through the loop that `nemorun run` uses (`scripts/bench/train.py` starts the ranks), for six steps.
"measured" is the largest `torch.cuda.max_memory_allocated` of all ranks, first weights included; "reserved"
is what the allocator had taken for it, "outside" what the card holds besides. `--fake` counts what each
operator stores inside a block, which a GPU's fused kernels do not, so it tends to be higher.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from layouts import MIXTRAL  # noqa: E402
from train import LLAMA_8B, LORA, start  # noqa: E402

BF16 = {"moments": "bf16"}
FULL, SELECTIVE = {"recompute": "full"}, {"recompute": "selective"}
WITH_LORA = {"lora": LORA}
#: name -> GPUs, layers and the row as `train.start` takes it.
ROWS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "lora": (1, 32, {"model": WITH_LORA}),
    "lora-selective": (1, 32, {"model": WITH_LORA, "trainer": SELECTIVE}),
    "lora-full": (1, 32, {"model": WITH_LORA, "trainer": FULL}),
    "one-gpu": (1, 8, {"trainer": FULL}),
    "pretrain-none": (2, 16, {}),
    "pretrain-selective": (2, 16, {"trainer": SELECTIVE}),
    "pretrain-full": (2, 16, {"trainer": FULL}),
    "pretrain-bf16": (2, 32, {"trainer": FULL, "optim": BF16}),
    "accumulated": (2, 16, {"trainer": SELECTIVE, "micro_batches": 2}),
    "packed": (2, 16, {"trainer": SELECTIVE, "packed": True, "length": 4096, "rows": 2}),
    "tp2": (2, 16, {"parallelism": {"tensor_parallel": 2}, "optim": BF16}),
    "pp2": (2, 16, {"parallelism": {"pipeline_parallel": 2}, "micro_batches": 4, "trainer": FULL}),
    "cp2": (2, 16, {"parallelism": {"context_parallel": 2}, "trainer": FULL}),
    "mixtral-lora": (2, 16, {"model": MIXTRAL, "length": 2048, "trainer": FULL}),
    "mixtral-ep2": (
        2,
        16,
        {"model": MIXTRAL, "length": 2048, "trainer": FULL, "parallelism": {"expert_parallel": 2}},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS)
    parser.add_argument("--fake", action="store_true", help="count on fake tensors instead; minutes a row")
    parser.add_argument("--layers", type=int, help="fewer layers in all rows")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    here = 2 if arguments.fake else _gpus()
    results = {}
    titles = f"{'predicted':>10} {'measured':>10} {'error':>7} {'reserved':>8} {'outside':>8}"
    print(f"{'row, in GiB':<20} {'GPUs':>4} {titles}")
    for name in arguments.rows or ROWS:
        gpus, layers, row = ROWS[name]
        if gpus > here:
            print(f"{name:<20} {gpus:>4} needs more GPUs than the {here} here")
            continue
        row = {"rows": 1, "layers": arguments.layers or layers, **row}
        results[name] = found = fake(row, gpus) if arguments.fake else measured(row, gpus)
        print(line(name, gpus, found), flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1))


def line(name: str, gpus: int, found: dict[str, Any]) -> str:
    if "error" in found:
        return f"{name:<20} {gpus:>4} {found['predicted']:>10.2f} {found['error'][-300:]}"
    shown = " ".join(f"{found[key]:>8.1f}" if key in found else "" for key in ("reserved", "outside"))
    off = found["predicted"] / found["measured"] - 1
    return f"{name:<20} {gpus:>4} {found['predicted']:>10.2f} {found['measured']:>10.2f} {off:>+7.1%} {shown}"


def _gpus() -> int:
    import torch

    if not torch.cuda.is_available():
        sys.exit("there is no GPU here; --fake counts without one")
    return torch.cuda.device_count()


def configs(row: dict[str, Any], gpus: int) -> tuple[Any, ...]:
    """What `nemorun.llm.peak` takes, of a row."""
    from nemorun.llm.config import DataConfig, GPTConfig, LoraConfig
    from nemorun.training.config import OptimConfig, ParallelismConfig, TrainerConfig

    shape = {**LLAMA_8B, **row.get("model", {}), "num_layers": row["layers"]}
    if "lora" in shape:
        shape["lora"] = LoraConfig(**shape["lora"])
    trainer = TrainerConfig(devices=gpus, **row.get("trainer", {}))
    parallelism = ParallelismConfig(**row.get("parallelism", {}))
    batch = row["rows"] * row.get("micro_batches", 1) * parallelism.data_ranks(gpus)
    length = row.get("length", shape["seq_length"])
    data = DataConfig(global_batch_size=batch, micro_batch_size=row["rows"], seq_length=length)
    return GPTConfig(**shape), trainer, data, OptimConfig(**row.get("optim", {})), parallelism


def predicted(row: dict[str, Any], gpus: int) -> dict[str, Any]:
    from nemorun.llm.memory import GIB
    from nemorun.llm.peak import peak_memory

    memory = peak_memory(*configs(row, gpus))
    parts = {name: size / GIB for name, size in memory.parts()}
    return {"predicted": memory.total / GIB, "moment": memory.moment, "parts": parts}


def measured(row: dict[str, Any], gpus: int) -> dict[str, Any]:
    more = {
        "steps": 1,
        "set": [],
        "trace": None,
        "floor": False,
    }  # after five: from the second on, none grows
    found = start({**row, **more}, gpus)
    if "error" in found:
        return {**predicted(row, gpus), "error": found["error"]}
    keys = {"measured": "gib_of_any_rank", "reserved": "reserved_gib", "outside": "outside_gib"}
    return predicted(row, gpus) | {name: found[key] for name, key in keys.items()}


def fake(row: dict[str, Any], gpus: int) -> dict[str, Any]:
    from memory_fake import fake_peak

    model, trainer, data, optim, parallelism = configs(row, gpus)
    if parallelism.pipeline_parallel * parallelism.context_parallel > 1 or row.get("packed"):
        return {**predicted(row, gpus), "error": "is for GPUs only"}
    micro_batches = row.get("micro_batches", 1)
    found = fake_peak(model, trainer, optim, parallelism, row["rows"], data.seq_length, micro_batches)
    return {**predicted(row, gpus), "measured": found.peak / 2**30}


if __name__ == "__main__":
    main()
