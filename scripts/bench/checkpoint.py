#!/usr/bin/env python3
"""How long an asynchronous checkpoint holds up training, and how fast it is written and read.

    torchrun --nproc-per-node 2 scripts/bench/checkpoint.py --folder /scratch/checkpoint

The weights have the shapes of Llama-3.1-8B (`--layers` for fewer), in float32 with AdamW in float32, sharded
by FSDP2. Steps with a save under way are compared with steps without. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from nemorun.training.checkpoint import Checkpointer
from nemorun.training.config import CheckpointConfig, TrainerConfig
from nemorun.training.distributed import Ranks, join


class Block(nn.Module):
    """The matrices of a block, without attention between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.qkv = nn.Linear(width, width * 3 // 2, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 7 * width, bias=False)
        self.down = nn.Linear(width * 7 // 2, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(self.qkv(self.norm(x))[..., : x.shape[-1]])
        gate, up = self.gate_up(self.norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Model(nn.Module):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(width * 313 // 10, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.head = nn.Linear(width, width * 313 // 10, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x).logsumexp(-1).float().sum()


def build(ranks: Ranks, width: int, layers: int) -> Model:
    with torch.device("meta"):
        model = Model(width, layers)
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for block in (*model.blocks, model.embedding, model.head, model):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    model.to_empty(device=ranks.device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.to_local().normal_(0, 0.01)
    return model


class _Told(dict[str, float]):
    """Says each number when it is found, so that a run that is cut short has said something."""

    def __setitem__(self, name: str, value: float) -> None:
        super().__setitem__(name, value)
        print(f"{name:36} {value:10.3f}", flush=True)


def measure(ranks: Ranks, options: argparse.Namespace) -> dict[str, float]:
    model = build(ranks, options.width, options.layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    shutil.rmtree(options.folder, ignore_errors=True) if ranks.first else None
    config = CheckpointConfig(keep_last=1, asynchronous=not options.synchronous)
    checkpointer = Checkpointer(options.folder, config, model, optimizer, ranks)
    tokens = torch.randint(0, 1000, (1, options.tokens), device=ranks.device)

    def sync() -> None:
        if ranks.device.type == "cuda":
            torch.cuda.synchronize()

    def step() -> float:
        start = time.perf_counter()
        for _ in range(options.micro_batches):
            (model(tokens) / 1e6).backward()
        optimizer.step()
        optimizer.zero_grad()
        sync()
        return time.perf_counter() - start

    def seconds(action: object) -> float:
        sync()
        dist.barrier()
        start = time.perf_counter()
        action()  # type: ignore[operator]
        sync()
        return time.perf_counter() - start

    found: dict[str, float] = _Told() if ranks.first else {}
    step()
    checkpointer.prepare()
    preparing = []
    while checkpointer._preparing and ranks.sum(checkpointer._preparing.is_alive())[0]:
        preparing.append(step())
    found["memory_taken_s"] = sum(preparing)
    found["step_while_memory_is_taken_s"] = max(preparing, default=0.0)
    usual = [step() for _ in range(6)]
    found["step_s"] = statistics.median(usual)
    found["step_longest_s"] = max(usual)
    for number, save in ((1, "first"), (2, "second")):
        before = time.perf_counter()
        held_up = checkpointer.save(number, {"tokens": 0})
        steps = [step()]
        found[f"{save}_save_host_s"] = held_up
        found[f"{save}_save_stall_s"] = checkpointer.stall()
        found[f"{save}_save_next_step_s"] = steps[0]
        while checkpointer._writing and ranks.sum(checkpointer._writing.is_alive())[0]:
            steps.append(step())
        found[f"{save}_written_after_s"] = time.perf_counter() - before
        found[f"{save}_step_meanwhile_s"] = statistics.median(steps[1:] or steps)
        found[f"{save}_step_meanwhile_longest_s"] = max(steps[1:] or steps)
        checkpointer.finish()
        path = options.folder / f"step-{number:08d}"
        if ranks.first:
            found["gib"] = sum(file.stat().st_size for file in path.iterdir()) / 2**30
            if number == 1:
                shutil.rmtree(path)  # room for the second
        ranks.all(True)
    if ranks.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        found["memory_before_restore_gib"] = torch.cuda.memory_allocated() / 2**30
    found["restore_s"] = seconds(checkpointer.restore)
    if ranks.device.type == "cuda":
        found["memory_peak_of_restore_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where checkpoints go; it is deleted")
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--micro-batches", type=int, default=8)
    parser.add_argument("--synchronous", action="store_true")
    options = parser.parse_args()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    with join(TrainerConfig(devices=world)) as ranks:
        found = measure(ranks, options)
        if ranks.first:
            shutil.rmtree(options.folder, ignore_errors=True)
            device = torch.cuda.get_device_name() if ranks.device.type == "cuda" else "cpu"
            print(json.dumps({"device": device, "ranks": world, "layers": options.layers, **found}))


if __name__ == "__main__":
    main()
