"""A model divided over the ranks: sharded (FSDP2) or whole on each (DDP), and the first weights by seed."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from nemorun.training.config import TrainerConfig
from nemorun.training.distributed import Ranks
from nemorun.training.model import TrainableModel


def settle_precision(config: TrainerConfig, ranks: Ranks) -> TrainerConfig:
    """`config` with precision "auto" replaced by what suits the device; ranks must be of one kind."""
    if config.precision != "auto":
        return config
    cpu_info = Path("/proc/cpuinfo")
    flags = cpu_info.read_text().split() if cpu_info.exists() else []
    quick = ranks.device.type == "cuda" or "avx512_bf16" in flags or "amx_bf16" in flags
    return replace(config, precision="bf16-mixed" if quick else "fp32")


def parallelize(model: TrainableModel, config: TrainerConfig, ranks: Ranks) -> nn.Module:
    """Divide `model`, made on the meta device, over the ranks and give it its first weights.

    fsdp: each unit is gathered for its forward and its backward; its float32 shards stay, and gradients are
    summed in float32. ddp: the weights stay whole on every rank, in float32.
    """
    if config.strategy == "ddp":
        model.to_empty(device=ranks.device)
        initialize(model, config.seed)
        return DistributedDataParallel(
            model, device_ids=[ranks.device] if ranks.device.type == "cuda" else None
        )
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,), mesh_dim_names=("data",))
    # Inputs are not cast: rotary angles stay in float32, and the residual stream has the embedding's type.
    mixed = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if config.precision == "bf16-mixed" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    # On the CPU the ranks share the memory that freeing a unit before its backward would save.
    reshard = ranks.device.type != "cpu"
    for unit in model.units():
        fully_shard(unit, mesh=mesh, mp_policy=mixed, reshard_after_forward=reshard)
    fully_shard(model, mesh=mesh, mp_policy=mixed)
    model.to_empty(device=ranks.device)
    initialize(model, config.seed)
    return model


@torch.no_grad()
def initialize(model: TrainableModel, seed: int) -> None:
    """Give every parameter its first values: the same for one seed, however the model is divided.

    Each parameter has its own random stream, drawn for the whole parameter; a rank keeps its part. A GPU's
    streams differ from the CPU's, so the same seed gives other values there.
    """
    for name, parameter in model.named_parameters():
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        generator = torch.Generator(parameter.device).manual_seed(int.from_bytes(digest[:7], "big"))
        whole = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
        model.init_parameter(name, whole, generator)
        if isinstance(parameter, DTensor):
            # Every rank has the whole, so each takes its own part of it and nothing is sent.
            part = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
            parameter.to_local().copy_(part.to_local())
        else:
            parameter.copy_(whole)


def autocast(config: TrainerConfig, ranks: Ranks) -> torch.autocast:
    """The context of a forward pass: bfloat16 for ddp with bf16-mixed; for fsdp its own policy sees to it."""
    enabled = config.strategy == "ddp" and config.precision == "bf16-mixed"
    return torch.autocast(ranks.device.type, dtype=torch.bfloat16, enabled=enabled)


@contextlib.contextmanager
def accumulation(model: nn.Module, last: bool) -> Iterator[None]:
    """The context of one micro-batch: ddp exchanges gradients only with the last.

    fsdp sums them over the ranks with each, so that no rank ever holds a whole gradient.
    """
    if isinstance(model, DistributedDataParallel) and not last:
        with model.no_sync():
            yield
    else:
        yield
