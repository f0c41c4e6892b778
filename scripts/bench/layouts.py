#!/usr/bin/env python3
"""Full-size models for a few steps under every kind of parallelism that two GPUs can show, by `nemorun run`.

    python scripts/bench/layouts.py                    Llama 3.1 8B and Mixtral 8x7B, on two GPUs
    python scripts/bench/layouts.py --rows fsdp2 tp2   some
    python scripts/bench/layouts.py --smoke            tiny ones in float32, on the CPU, to try the script

Within a family all rows begin with the same weights (by seed) and read the same text, so losses and norms
must agree: bfloat16 leaves them some thousandths apart, and a mixture whose router knows nothing yet some
hundredths, because rounding sends tokens to other experts. Ends with 1 where a row fails or differs by more.
Float32 leaves them 1e-6 apart, so tiny ones may differ by 1e-4.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
SHORT = (
    "trainer.val_batches=0 trainer.log_interval=1 trainer.recompute=full optim.warmup_steps=2 "
    "data.global_batch_size=4 data.micro_batch_size=1 checkpoint.interval=0 checkpoint.last=False"
)
PRETRAIN = "llama3_8b_pretrain data.seq_length=4096 optim.moments=bf16 trainer.reshard_after_forward=True"
LLAMA, MIXTRAL = (
    f"{name}_finetune data_path=nemorun:examples tokenizer_path=bytes data.val_data=null"
    for name in ("llama3_8b", "mixtral_8x7b")
)
#: `nemorun run --smoke` would choose the batch by the layout, and losses could not be compared
TINY = (
    "model.hidden_size=64 model.num_layers=2 model.num_attention_heads=4 model.num_query_groups=2 "
    "model.ffn_hidden_size=128 model.vocab_size=264 model.seq_length=128 data.seq_length=128 "
    "trainer.accelerator=cpu trainer.precision=fp32 trainer.compile=False"
)
ONE = "parallelism.tensor_parallel=1 parallelism.pipeline_parallel=1"
#: family, by how much its losses may differ, GPUs, arguments
ROWS: dict[str, tuple[str, float, int, str]] = {
    "fsdp2": ("pretrain", 0.02, 2, PRETRAIN),
    "tp2": ("pretrain", 0.02, 2, f"{PRETRAIN} parallelism.tensor_parallel=2"),
    "pp2": ("pretrain", 0.02, 2, f"{PRETRAIN} parallelism.pipeline_parallel=2"),
    "cp2": ("pretrain", 0.02, 2, f"{PRETRAIN} parallelism.context_parallel=2"),
    # the mean is over 844 answer tokens a step, and so noisier than over 16,384
    "lora": ("finetune", 0.05, 1, f"{LLAMA} {ONE}"),
    "lora fsdp2": ("finetune", 0.05, 2, f"{LLAMA} {ONE}"),
    "lora tp2": ("finetune", 0.05, 2, f"{LLAMA} {ONE} parallelism.tensor_parallel=2"),
    "mixtral fsdp2": ("mixture", 0.1, 2, f"{MIXTRAL} {ONE} parallelism.expert_parallel=1"),
    "mixtral ep2": ("mixture", 0.1, 2, f"{MIXTRAL} {ONE} parallelism.expert_parallel=2"),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--layers", type=int, help="fewer layers, to save time")
    parser.add_argument("--smoke", action="store_true", help="tiny models, on the CPU")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="more for all rows")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    more = [f"max_steps={arguments.steps}"]
    more += TINY.split() if arguments.smoke else []
    more += [f"model.num_layers={arguments.layers}"] if arguments.layers else []
    more += arguments.set
    results: dict[str, Any] = {}
    for name in arguments.rows:
        family, bound, gpus, words = ROWS[name]
        found = run([*words.split(), *SHORT.split(), f"num_gpus={gpus}", *more])
        results[name] = {"family": family, "bound": 1e-4 if arguments.smoke else bound, **found}
        compare(results, name)
        print(line(name, results[name]), flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1))
    print(table(results))
    return 0 if all(row["agrees"] for row in results.values()) else 1


def compare(results: dict[str, Any], name: str) -> None:
    """Say in a row how far its losses are from those of the first of its family, and whether it agrees."""
    row = results[name]
    if "error" in row:
        row["agrees"] = False
        return
    family = (one for one in results.values() if one["family"] == row["family"] and "error" not in one)
    first = next(family)["losses"]
    apart = [abs(a - b) for a, b in zip(row["losses"], first, strict=True)]
    row["apart"] = max(apart)
    row["agrees"] = all(one <= row["bound"] for one in apart)  # not so where one is no number


def line(name: str, row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{name:<14} {row['error']}"
    return (
        f"{name:<14} losses {shown(row['losses'])}  norms {shown(row['norms'])}  "
        f"apart by {row['apart']:.4f}{'' if row['agrees'] else ' TOO FAR'}  "
        f"{row['tokens_per_second_per_gpu']:,.0f} tokens/s/GPU  {row['peak_memory_gib']:.1f} GiB"
    )


def table(results: dict[str, Any]) -> str:
    lines = [
        f"{'row':<14} {'first loss':>10} {'last':>8} {'norm':>8} {'apart':>8} {'tokens/s/GPU':>12} {'GiB':>6}"
    ]
    for name, row in results.items():
        if "error" in row:
            lines.append(f"{name:<14} failed")
            continue
        lines.append(
            f"{name:<14} {row['losses'][0]:>10.4f} {row['losses'][-1]:>8.4f} {row['norms'][0]:>8.2f} "
            f"{row['apart']:>8.4f} {row['tokens_per_second_per_gpu']:>12,.0f} {row['peak_memory_gib']:>6.1f}"
            f"{'' if row['agrees'] else '  TOO FAR'}"
        )
    return "\n".join(lines)


def shown(numbers: list[float]) -> str:
    return " ".join(f"{number:.4f}" for number in numbers)


def run(words: list[str]) -> dict[str, Any]:
    """One `nemorun run`; what its metrics say, or an error."""
    command = f"nemorun run {shlex.join(words)} --executor local"
    print(command, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "nemorun", "run", *words, "--executor", "local"],
            cwd=folder,
            env={
                **os.environ,
                "NEMORUN_HOME": folder,
                "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            return {"command": command, "error": f"exit code {done.returncode}: {done.stdout[-3000:]}"}
        (metrics,) = Path(folder).glob("experiments/*/tasks/*/results/metrics.jsonl")
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    return {
        "command": command,
        "losses": [line["loss"] for line in steps],
        "norms": [line["grad_norm"] for line in steps],
        "tokens_per_second_per_gpu": steps[-1]["tokens_per_second_per_gpu"],
        "peak_memory_gib": steps[-1]["peak_memory_gib"],
    }


if __name__ == "__main__":
    sys.exit(main())
