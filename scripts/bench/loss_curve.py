#!/usr/bin/env python3
"""How far a run in float8 stays from the same run in bfloat16: both losses, step by step.

    python scripts/bench/loss_curve.py                    8 layers, 300 steps: minutes on one GPU
    python scripts/bench/loss_curve.py --json curves.json
    python scripts/bench/loss_curve.py --layers 2 --width 64 --length 64 --steps 3 --accelerator cpu

Two small Llamas from one seed, on the same text in the same order: the sources of Python's standard library,
as bytes, so that nothing has to be fetched. One step's loss says little, because runs that round differently
drift apart; so the means of the last steps are compared as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

PRECISIONS = ("bf16-mixed", "fp8-mixed")
LINES = 20
"""Of the table, at most."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("layers", 8), ("width", 1024), ("length", 1024), ("batch", 16), ("steps", 300)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--accelerator", choices=["auto", "cpu", "gpu"], default="auto")
    parser.add_argument("--json", metavar="FILE", help="write both curves")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        curves = {one: curve(arguments, one, Path(scratch) / one) for one in PRECISIONS}
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"settings": vars(arguments), "losses": curves}, indent=1))
    print(table(*curves.values()))


def curve(arguments: argparse.Namespace, precision: Any, folder: Path) -> list[float]:
    """The loss of each step."""
    from nemorun.llm import DataConfig, GPTConfig, pretrain
    from nemorun.training import CheckpointConfig, LogConfig, OptimConfig, TrainerConfig

    heads = max(1, arguments.width // 64)
    pretrain(
        GPTConfig(
            hidden_size=arguments.width,
            num_layers=arguments.layers,
            num_attention_heads=heads,
            num_query_groups=max(1, heads // 4),
            seq_length=arguments.length,
            vocab_size=320,
        ),
        TrainerConfig(
            max_steps=arguments.steps,
            precision=precision,
            accelerator=arguments.accelerator,
            log_interval=1,
            val_batches=0,
            seed=arguments.seed,
        ),
        DataConfig(global_batch_size=arguments.batch, micro_batch_size=arguments.batch, seed=arguments.seed),
        OptimConfig(lr=arguments.lr, warmup_steps=max(1, arguments.steps // 10)),
        checkpoint=CheckpointConfig(interval=0, asynchronous=False),
        log=LogConfig(dir=folder, tensorboard=False),
        sample=None,
    )
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def table(bf16: list[float], fp8: list[float]) -> str:
    differences = [theirs - ours for ours, theirs in zip(bf16, fp8, strict=True)]
    steps = range(1, len(bf16) + 1)
    every = max(1, len(bf16) // LINES)
    lines = [f"{'step':>6} {'bf16-mixed':>11} {'fp8-mixed':>11} {'difference':>11}"]
    for step in steps:
        if step == 1 or step % every == 0:
            at = step - 1
            lines.append(f"{step:>6} {bf16[at]:>11.4f} {fp8[at]:>11.4f} {differences[at]:>+11.4f}")
    largest = max(steps, key=lambda step: abs(differences[step - 1]))
    last = max(1, len(bf16) // 10)
    ends = [statistics.fmean(one[-last:]) for one in (bf16, fp8)]
    return "\n".join(
        [
            *lines,
            f"largest difference {differences[largest - 1]:+.4f}, at step {largest}",
            f"mean of the last {last} steps: {ends[0]:.4f} and {ends[1]:.4f}, {ends[1] - ends[0]:+.4f} "
            f"({(ends[1] - ends[0]) / ends[0]:+.2%})",
        ]
    )


if __name__ == "__main__":
    main()
