"""How near training on the CPU comes to what its cores can multiply: measured in one run, side by side.

    python scripts/bench/train_cpu.py [steps]

Two ranks, one thread each, as `nemorun run tiny_llama_pretrain` has them. In turn they do the recipe's matrix
products alone (forward and both gradients of every layer, in bfloat16 where the recipe takes it) and a whole
training step; the medians are compared. Parts of a step are given in CPU milliseconds of a rank, which other
programs on the machine disturb less than they do the wall clock.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

from nemorun.executors.local.ports import reserve_port

WORLD = 2


def main(steps: int) -> None:
    import torch

    from nemorun.llm import GPTModel, PretrainData
    from nemorun.recipes import tiny_llama_pretrain
    from nemorun.training.batch import shared_out
    from nemorun.training.config import ParallelismConfig
    from nemorun.training.distributed import join
    from nemorun.training.layout import Layout
    from nemorun.training.optim import build_optimizer, gradient_norm
    from nemorun.training.parallel import parallelize, settle_precision

    recipe = tiny_llama_pretrain(devices=WORLD)
    shape, trainer = recipe.model.build(), recipe.trainer.build()
    data, optim = recipe.data.build(), recipe.optim.build()
    trainer.accelerator = "cpu"
    with join(trainer) as ranks:
        trainer = settle_precision(trainer, ranks)
        model = GPTModel(shape)
        matrices = [(n, p.shape) for n, p in model.named_parameters() if p.ndim == 2 and "embedding" not in n]
        tokens_here = data.global_batch_size * shape.seq_length // WORLD
        kind = torch.bfloat16 if trainer.precision == "bf16-mixed" else torch.float32
        inputs = {size: torch.randn(tokens_here, size, dtype=kind) for _, s in matrices for size in s}
        weights = [torch.randn(s, dtype=kind) for _, s in matrices]

        def products() -> None:
            for weight in weights:
                x, gradient = inputs[weight.shape[1]], inputs[weight.shape[0]]
                x @ weight.t()
                gradient @ weight
                gradient.t() @ x

        parts: dict[str, list[float]] = {}

        def timed(name: str, start: float) -> float:
            now = time.process_time()
            parts.setdefault(name, []).append(now - start)
            return now

        layout = Layout(trainer, ParallelismConfig(), ranks)
        [model] = parallelize(model, trainer, layout)
        optimizer = build_optimizer([model], optim)
        batches = PretrainData(data, shape.seq_length, ranks)

        def step() -> None:
            at = time.process_time()
            [batch] = batches.next_step()
            tokens, inputs = shared_out(batch, layout)
            at = timed("data", at)
            loss = model(tokens, inputs)
            at = timed("forward", at)
            (loss / tokens.numel() / WORLD).backward()
            at = timed("backward", at)
            norm = gradient_norm(model.parameters(), WORLD, ranks.device)
            at = timed("norm", at)
            optimizer.step(divisor=(norm / optim.grad_clip).clamp(min=1.0))
            optimizer.zero_grad()
            timed("optimizer", at)

        walls: dict[str, list[float]] = {"products": [], "step": []}
        cpus: dict[str, list[float]] = {"products": [], "step": []}
        for _ in range(steps + 2):
            for name, work in (("products", products), ("step", step)):
                ranks.all(True)
                wall, cpu = time.perf_counter(), time.process_time()
                work()
                walls[name].append(time.perf_counter() - wall)
                cpus[name].append(time.process_time() - cpu)
        if not ranks.first:
            return

        def median(values: list[float]) -> float:
            return statistics.median(values[2:])  # The first two warm up.

        tokens = tokens_here * WORLD
        for label, seconds in (("wall clock", walls), ("CPU time", cpus)):
            limit, reached = tokens / median(seconds["products"]), tokens / median(seconds["step"])
            print(
                f"{label:10}  products alone {limit:8,.0f} tokens/s   training {reached:8,.0f} tokens/s   "
                f"ratio {reached / limit:.2f}"
            )
        flops = 6 * sum(w.numel() for w in weights) * tokens_here
        print(f"a core multiplies {flops / median(cpus['products']) / 1e9:,.0f} GFLOP/s in {kind}")
        print("CPU ms of a step:", ", ".join(f"{n} {median(v) * 1e3:.1f}" for n, v in parts.items()))


def start_ranks(steps: int) -> int:
    with reserve_port() as reserved:
        port = reserved.getsockname()[1]
        shared = {"WORLD_SIZE": str(WORLD), "LOCAL_WORLD_SIZE": str(WORLD), "OMP_NUM_THREADS": "1"}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        started = [
            subprocess.Popen(
                [sys.executable, __file__, str(steps)],
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(WORLD)
        ]
        return max(process.wait() for process in started)


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    if "RANK" in os.environ:
        main(count)
    else:
        sys.exit(start_ranks(count))
