"""The ranks of a run: joining the process group, agreeing on numbers, and leaving in order."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from nemorun.training.config import LogConfig, TrainerConfig
from nemorun.training.errors import TrainingError
from nemorun.training.metrics import results_folder


@dataclass(frozen=True)
class Ranks:
    """This process among the others."""

    rank: int
    world_size: int
    device: torch.device
    store: dist.Store | None = None
    """By which the ranks found each other; None for the only one."""

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """The values added up over all ranks, in float64. Every rank must call it."""
        # On the CPU: these numbers steer the loop, and must not make it wait for the accelerator.
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def max(self, *values: float) -> list[float]:
        """The largest of each over all ranks. Every rank must call it."""
        largest = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.tolist()

    def all(self, true: bool) -> bool:
        """Is it so on every rank? Every rank must call it; none goes on before all have."""
        return self.sum(float(not true)) == [0.0]


@contextlib.contextmanager
def join(config: TrainerConfig, dumps: Path | None = None) -> Iterator[Ranks]:
    """Join the ranks that the environment describes, as torchrun sets it, or else be the only one.

    dumps: where NCCL writes what was under way when an exchange timed out. None: `hang` in the results.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    wanted = config.num_nodes * config.devices
    if world_size != wanted:
        raise TrainingError(
            f"trainer.num_nodes={config.num_nodes} x trainer.devices={config.devices} are {wanted} ranks, "
            f"but WORLD_SIZE is {world_size}. Start it with `nemorun run` or torchrun, or set trainer.devices"
        )
    device = _device(config)
    # Both kinds: tensors on a GPU go through NCCL, and the loop's own numbers always through gloo.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store: dist.Store | None = None
    rank = 0
    if "RANK" in os.environ:
        store, rank, world_size = next(dist.rendezvous("env://"))
    if device.type == "cuda":
        _record_exchanges(dumps or results_folder(LogConfig()) / "hang")
    # Later than the watchdog, which knows more. Before it starts, the first rank may prepare data for long.
    timeout = timedelta(seconds=max(1800.0, 2 * config.hang_timeout))
    dist.init_process_group(
        backend, store=store or dist.HashStore(), rank=rank, world_size=world_size, timeout=timeout
    )
    try:
        yield Ranks(rank, world_size, device, store)
    except Exception:
        # Leaving a NCCL group waits for what is under way, and after an error on one rank that may never end.
        if device.type == "cpu":
            _leave()
        raise
    except BaseException:
        _leave()
        raise
    _leave()


def _record_exchanges(dumps: Path) -> None:
    """NCCL remembers its last exchanges (its flight recorder), and writes them down where one times out."""
    dumps.mkdir(parents=True, exist_ok=True)
    for name in ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"):  # of today, and of torch until 2.8
        os.environ.setdefault(name, "2000")
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    for name in ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"):
        os.environ.setdefault(name, str(dumps / "nccl_trace_rank_"))


def _leave() -> None:
    """Destroy the process group, and let gloo's threads come to rest.

    A thread drops the tensors of its last exchange after it has woken the one that waits for them, and needs
    the interpreter for that. On busy cores it can be late, find the interpreter gone, and abort the process
    (3 of 6 runs did). After `fully_shard` the threads live on with the group, and no call joins them: so they
    are given time.
    """
    dist.destroy_process_group()
    time.sleep(0.2)


def _device(config: TrainerConfig) -> torch.device:
    gpus = torch.cuda.device_count()
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", config.devices))
    if config.accelerator == "cpu" or (config.accelerator == "auto" and gpus == 0):
        return torch.device("cpu")
    if ranks > gpus:
        if config.accelerator == "gpu":
            raise TrainingError(
                f"trainer.accelerator=gpu and {ranks} ranks on this node need a GPU each, "
                f"but torch sees {gpus}. Set trainer.devices={max(gpus, 1)}, or trainer.accelerator=cpu"
            )
        if os.environ.get("RANK", "0") == "0":
            print(
                f"{ranks} ranks but {gpus} GPUs: training on the CPU. trainer.devices={gpus} uses the GPUs",
                flush=True,
            )
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device
