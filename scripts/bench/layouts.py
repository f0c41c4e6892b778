#!/usr/bin/env python3
"""Full-size models for a few steps under every kind of parallelism that two GPUs can show.

    python scripts/bench/layouts.py                    Llama 3.1 8B and Mixtral 8x7B, on two GPUs
    python scripts/bench/layouts.py --rows fsdp2 tp2   some

The same weights (by seed) and the same tokens everywhere, so the losses must agree; bf16 leaves them some
thousandths apart. Prints losses, speed and peak memory, and the largest difference from the first row.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from train import LORA, start

MIXTRAL = {
    "hidden_size": 4096,
    "num_layers": 32,
    "num_attention_heads": 32,
    "num_query_groups": 8,
    "ffn_hidden_size": 14336,
    "vocab_size": 32000,
    "rope_theta": 1e6,
    "num_experts": 8,
    "lora": {**LORA, "targets": ["q_proj", "k_proj", "v_proj", "o_proj"]},
}
DENSE = {
    "model": {},
    "length": 4096,
    "optim": {"moments": "bf16", "warmup_steps": 2},
    "trainer": {"recompute": "full"},
}
EXPERTS = {"model": MIXTRAL, "length": 2048, "optim": {"warmup_steps": 2}, "trainer": {"recompute": "full"}}
#: Four sequences a step in all.
ROWS: dict[str, tuple[str, dict[str, Any], int]] = {
    "fsdp2": ("llama", {}, 2),
    "tp2": ("llama", {"tensor_parallel": 2}, 4),
    "pp2": ("llama", {"pipeline_parallel": 2}, 4),
    "cp2": ("llama", {"context_parallel": 2}, 4),
    "mixtral fsdp2": ("mixtral", {}, 2),
    "mixtral ep2": ("mixtral", {"expert_parallel": 2}, 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--layers", type=int, help="fewer layers, to try the script")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for name in arguments.rows:
        family, parallelism, micro_batches = ROWS[name]
        row = {
            **(DENSE if family == "llama" else EXPERTS),
            "parallelism": parallelism,
            "rows": 1,
            "micro_batches": micro_batches,
            "steps": arguments.steps,
            "layers": arguments.layers,
            "set": [],
            "trace": None,
            "floor": False,
            "losses": True,
        }
        results[name] = found = start(row, 2)
        first = next(results[n] for n in results if ROWS[n][0] == family)
        if "error" in found:
            print(f"{name:<14} {found['error'][-1500:]}", flush=True)
            continue
        apart = max(abs(a - b) for a, b in zip(found["losses"], first["losses"], strict=True))
        losses = " ".join(f"{loss:.4f}" for loss in found["losses"])
        print(
            f"{name:<14} {found['tokens_per_second_per_gpu']:>8,.0f} tokens/s/GPU {found['gib']:>5.1f} GiB  "
            f"differs by {apart:.4f}  losses {losses}  norms {' '.join(f'{n:.3f}' for n in found['norms'])}",
            flush=True,
        )
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
