"""First weights: the same for one seed, however the model is divided."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from nemorun.training.model import TrainableModel


@torch.no_grad()
def initialize(model: TrainableModel, seed: int) -> None:
    """Give every parameter its first values.

    Each parameter has its own random stream, named by the parameter and drawn for the whole of it; a rank
    keeps its part. A GPU's streams differ from the CPU's, so the same seed gives other values there.
    """
    for name, parameter in model.named_parameters():
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        generator = torch.Generator(parameter.device).manual_seed(int.from_bytes(digest[:7], "big"))
        whole = torch.empty(parameter.shape, dtype=torch.float32, device=parameter.device)
        model.init_parameter(name, whole, generator)
        take_part(parameter, whole)


@torch.no_grad()
def take_part(parameter: Tensor, whole: Tensor) -> None:
    """Write this rank's part of `whole`, which every rank has, into its parameter; nothing is sent."""
    if isinstance(parameter, DTensor):
        part = distribute_tensor(
            whole.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
        )
        parameter.to_local().copy_(part.to_local())
    else:
        parameter.copy_(whole)
