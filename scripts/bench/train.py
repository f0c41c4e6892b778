#!/usr/bin/env python3
"""Training speed beside the limits of the same GPUs, measured in the same run.

    python scripts/bench/train.py                        every row that this machine's GPUs can hold
    python scripts/bench/train.py --rows pretrain lora   some
    python scripts/bench/train.py --steps 20 --json train.json
    python scripts/bench/train.py --peer                 with what Hugging Face's users run beside ours

The limit of a row is the time of its matrix products and its attention alone, forward and backward, at its
shapes and in its precision: each by itself for a moment, over 16,384 tokens ("floor"); and all of them, over
a micro-batch, for seconds, in which a GPU comes to its limit of power ("sustained"). All GPUs of a row
measure them, and the slowest one's count: a step is over when its last GPU is done. Each row runs in
processes of its own, through the loop that `nemorun run` uses. Needs no network.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peer
from step_times import said_jitter, summary

if TYPE_CHECKING:
    from nemorun.llm import GPTConfig

ROOT = Path(__file__).resolve().parent.parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

LLAMA_8B = {
    "hidden_size": 4096,
    "num_layers": 32,
    "num_attention_heads": 32,
    "num_query_groups": 8,
    "ffn_hidden_size": 14336,
    "seq_length": 8192,
    "vocab_size": 128256,
}
LORA = {"enabled": True, "rank": 16, "alpha": 32.0}

SELECTIVE = {"recompute": "selective"}
FAST = {**SELECTIVE, "reshard_after_forward": False}
SUMMED = {"recompute": "none", "reshard_after_forward": False, "sync_each_micro_batch": False}
FLOAT8 = {**SELECTIVE, "precision": "fp8-mixed"}
PLAIN = {"warm": 5, "micro_batches": 1}
#: Steps that take as long as many others; the one before them is a short one.
MANY = {"micro_batches": 32, "warm": 1, "steps": 3}
WARM_MICRO_BATCHES = 8

#: name -> what it trains; `gpus` 0: all of them.
ROWS: dict[str, dict[str, Any]] = {
    "pretrain": {"gpus": 0, "rows": 2, "trainer": FAST},
    "pretrain-1": {"gpus": 0, "rows": 1},
    # Steps of many micro-batches, as recipes take them on H200s: the first row is what they do on two.
    "pretrain-sums": {"gpus": 0, "rows": 1, "trainer": SUMMED, **MANY, "micro_batches": 256, "steps": 1},
    "pretrain-sums-fp8": {"gpus": 0, "rows": 1, "trainer": {**SUMMED, **FLOAT8}, **MANY},
    "packed-sums": {"gpus": 0, "rows": 2, "length": 4096, "packed": True, "trainer": SUMMED, **MANY},
    "pretrain-fp8": {"gpus": 0, "rows": 2, "trainer": FLOAT8},
    "pretrain-bf16-moments": {"gpus": 0, "rows": 1, "optim": {"moments": "bf16"}},
    "lora": {"gpus": 1, "rows": 1, "model": {"lora": LORA}},
    "lora-2": {"gpus": 1, "rows": 2, "model": {"lora": LORA}, "trainer": SELECTIVE},
    "lora-fp8": {"gpus": 1, "rows": 1, "model": {"lora": LORA}, "trainer": {"precision": "fp8-mixed"}},
    "packed": {"gpus": 0, "rows": 4, "length": 4096, "packed": True, "trainer": FAST},
    "tp2": {"gpus": 2, "rows": 1, "parallelism": {"tensor_parallel": 2}, "optim": {"moments": "bf16"}},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=["pretrain-sums", "lora", "packed-sums"])
    parser.add_argument("--steps", type=int, default=20, help="steps that are timed, after some that are not")
    parser.add_argument("--micro-batches", type=int, help="in a step, of rows that have many")
    parser.add_argument("--layers", type=int, help="fewer layers, to try the script")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PART.FIELD=VALUE", help="change all rows of ours"
    )
    parser.add_argument("--trace", metavar="FILE", help="write a profile of one step of the first row")
    parser.add_argument("--no-floor", action="store_true", help="do not measure the limits")
    parser.add_argument(
        "--peer",
        action="store_true",
        help=f"run what Hugging Face's users run beside {', '.join(peer.ROWS)}, as far as it is installed; "
        "without it the bench stays within 8 minutes",
    )
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank:
        row = {**PLAIN, **json.loads(arguments.rank)}
        (peer.train if row.get("peer") else train)(row, model_config(row))
        return
    import torch

    results: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": {}}
    for name in arguments.rows:
        row = {**PLAIN, **ROWS[name], "layers": arguments.layers, "set": arguments.set}
        row["steps"] = min(arguments.steps, row.get("steps", arguments.steps))
        if arguments.micro_batches and row["micro_batches"] > 1:
            row["micro_batches"] = arguments.micro_batches
        row["trace"] = arguments.trace if name == arguments.rows[0] else None
        row["floor"] = not arguments.no_floor
        gpus = row["gpus"] or torch.cuda.device_count()
        results["rows"][name] = found = start(row, gpus)
        if arguments.peer and name in peer.ROWS:
            found["peer"] = peer.beside(row, gpus, start)
        print(f"{name}: {json.dumps(found)}", flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1))
    print(table(results))


def table(results: dict[str, Any]) -> str:
    lines = [
        f"{results['gpu']}, torch {results['torch']}",
        f"{'row':<22} {'tokens/s/GPU':>12} {'floor':>8} {'ratio':>6} {'sustained':>9} {'ratio':>6} "
        f"{'p99/median':>10} {'GiB':>6} first step",
    ]
    for name, row in results["rows"].items():
        if "error" in row:
            lines.append(f"{name:<22} {row['error'][-200:]}")
        else:
            speed = row["tokens_per_second_per_gpu"]
            limits = [
                f"{limit or 0:>{width},.0f} {speed / limit if limit else 0:>6.3f}"
                for limit, width in ((row.get("floor"), 8), (row.get("sustained"), 9))
            ]
            lines.append(
                f"{name:<22} {speed:>12,.0f} {' '.join(limits)} "
                f"{said_jitter(row['jitter'])} {row['gib']:>6.1f} {row['first_step_s']:>8.1f} s"
            )
        if "peer" in row:
            lines.append(peer.line(row["peer"], row.get("tokens_per_second_per_gpu")))
    return "\n".join(lines)


def start(row: dict[str, Any], gpus: int) -> dict[str, Any]:
    """Run a row's ranks; the first one's last line is the result."""
    from nemorun.executors.local.ports import reserve_port

    with tempfile.TemporaryDirectory() as folder, reserve_port() as reserved:
        port = reserved.getsockname()[1]
        ranks = []
        for rank in range(gpus):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": gpus, "LOCAL_WORLD_SIZE": gpus}
            env = {
                **os.environ,
                "PYTORCH_ALLOC_CONF": "expandable_segments:True",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
                **{k: str(v) for k, v in place.items()},
            }
            what = json.dumps({**row, "gpus": gpus, "folder": folder, "started": time.time()})
            ranks.append(
                subprocess.Popen(
                    [sys.executable, __file__, "--rank", what],
                    env=env,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        outputs = [rank.communicate()[0] for rank in ranks]
    for line in reversed(outputs[0].splitlines()):
        if line.startswith("{"):
            return json.loads(line)
    return {"error": " | ".join(o[-3000:] for o in outputs)}


# --- what each rank does ---


def model_config(row: dict[str, Any]) -> GPTConfig:
    from nemorun.llm import GPTConfig
    from nemorun.llm.config import LoraConfig

    shape = {**LLAMA_8B, **row.get("model", {})}
    if row["layers"]:
        shape["num_layers"] = row["layers"]
    if "lora" in shape:
        shape["lora"] = LoraConfig(**shape["lora"])
    return GPTConfig(**shape)


def train(row: dict[str, Any], config: GPTConfig) -> None:
    import torch
    from kernels import kernel_table
    from limits import FLOOR_TOKENS, floor_seconds, speed_of, sustained_seconds

    from nemorun.llm import GPTModel
    from nemorun.training.config import (
        CheckpointConfig,
        LogConfig,
        OptimConfig,
        ParallelismConfig,
        TrainerConfig,
    )
    from nemorun.training.distributed import join
    from nemorun.training.loop import Loop

    parts = {k: dict(row.get(k, {})) for k in ("trainer", "optim", "parallelism")}
    for change in row["set"]:
        path, _, value = change.partition("=")
        part, _, name = path.partition(".")
        parts[part][name] = json.loads(value)
    steps = row["steps"] + row["warm"] + (2 if row["trace"] else 0)
    trainer = TrainerConfig(
        max_steps=steps, devices=row["gpus"], log_interval=10, val_batches=0, **parts["trainer"]
    )
    length = row.get("length", config.seq_length)

    class Timed(Loop):
        """Marks the device's time after each step, without waiting for it."""

        def _train_step(self, batches: Any) -> Any:
            if self.step == 0:
                self.marks = []
            profile = row["trace"] if self.step == steps - 2 and self.ranks.first else None
            if profile:
                with torch.profiler.profile() as profiler:
                    result = super()._train_step(batches)
                    torch.cuda.synchronize()
                Path(profile).write_text(kernel_table(profiler))
            else:
                result = super()._train_step(batches)
            if self.step == 1:
                torch.cuda.synchronize()
                self.first_step = time.time() - row["started"]
            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
            self.marks.append(mark)
            return result

        def _save(self, *_: Any, **__: Any) -> None:
            pass

    if row.get("losses"):
        trainer.log_interval = 1
    with join(trainer) as ranks:
        loop = Timed(
            trainer,
            OptimConfig(**parts["optim"]),
            ParallelismConfig(**parts["parallelism"]),
            CheckpointConfig(),
            LogConfig(dir=row["folder"], tensorboard=False),
            ranks,
        )
        data = Random(row, length, config.vocab_size, loop.layout)
        result = loop.fit(GPTModel(config), data)
        torch.cuda.synchronize()
        times = [a.elapsed_time(b) / 1000 for a, b in pairwise(loop.marks[row["warm"] - 1 :])]
        if row["trace"]:
            times = times[:-2]  # a step that is profiled is no measure
        found = summary(times)
        peak = torch.cuda.max_memory_allocated() / 2**30
        reserved = torch.cuda.max_memory_reserved() / 2**30
        free, card = torch.cuda.mem_get_info()
        # of all processes on the card: what is not torch's own is CUDA's, NCCL's and the kernels'
        outside = (card - free - torch.cuda.memory_reserved()) / 2**30
        highest = ranks.max(peak, reserved, outside)
        losses, first = result["loss"], loop.first_step
        tokens = row["rows"] * row["micro_batches"] * length * loop.layout.data_ranks / row["gpus"]
        told = [json.loads(line) for line in (Path(row["folder"]) / "metrics.jsonl").read_text().splitlines()]
        del loop
        torch.cuda.empty_cache()
        floor = sustained = fastest = None
        if row["floor"]:
            float8 = trainer.precision == "fp8-mixed"
            own = (
                speed_of(floor_seconds, config, max(row["rows"], FLOOR_TOKENS // length), length, float8),
                speed_of(sustained_seconds, config, row["rows"], length, float8),
            )
            floor, sustained = (-slowest for slowest in ranks.max(*(-speed for speed in own)))
            fastest = ranks.max(*own)
        if ranks.first:
            answer = {
                "tokens_per_second_per_gpu": tokens / found["median_s"],
                "floor": floor,
                "sustained": sustained,
                "limits_of_fastest": fastest,
                **found,
                "gib": peak,
                "gib_of_any_rank": highest[0],
                "reserved_gib": highest[1],
                "outside_gib": highest[2],
                "first_step_s": first,
                "loss": losses,
                "losses": [entry["loss"] for entry in told],
                "norms": [entry["grad_norm"] for entry in told],
            }
            print(json.dumps(answer), flush=True)


class Random:
    """Random tokens, the same global batch for every layout; packed rows hold documents of 64 to 2,048."""

    def __init__(self, row: dict[str, Any], length: int, vocabulary: int, layout: Any) -> None:
        self.rows, self.length, self.vocabulary = row["rows"], length, vocabulary
        self.packed = row.get("packed", False)
        self.micro_batches, self.warm = row["micro_batches"], row["warm"]
        self.layout = layout
        self.step = 0

    def next_step(self) -> list[Any]:
        self.step += 1
        count = self.micro_batches
        if self.step <= self.warm:
            count = min(count, WARM_MICRO_BATCHES)
        first = self.layout.data_rank * count
        return [self._batch(first + i) for i in range(count)]

    def _batch(self, number: int) -> Any:
        import torch

        from nemorun.training.batch import Batch

        generator = torch.Generator().manual_seed(self.step * 1000 + number)
        tokens = torch.randint(0, self.vocabulary, (self.rows, self.length + 1), generator=generator)
        positions = None
        if self.packed:
            positions = torch.empty(self.rows, self.length, dtype=torch.int64)
            for row in positions:
                start = 0
                while start < len(row):
                    size = int(torch.randint(64, 2048, (), generator=generator))
                    piece = row[start : start + size]
                    piece.copy_(torch.arange(len(piece)))
                    start += size
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), positions)

    def validation(self, _: int) -> list[Any]:
        return []

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, _: dict[str, Any]) -> None:
        pass


if __name__ == "__main__":
    main()
