"""One of four ranks that share a model: what the tests of divided models start, as a script."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from nemorun.llm.config import GPTConfig
from nemorun.llm.huggingface import (
    read_adapter,
    read_config,
    read_lora,
    read_model,
    write_adapter,
    write_model,
)
from nemorun.training import TrainingError
from tests.llm.huggingface.blank import blank

#: How tensor-parallel ranks divide a matrix: by its rows, or by its columns.
_COLUMNS = ("output.weight", "down.weight", "output.lora_a", "down.lora_a", "feed_forward.down")
_WHOLE = ("norm.weight", "router.weight", "qkv.lora_a", "gate_up.lora_a", "output.lora_b", "down.lora_b")


class Holder(nn.Module):
    """Parameters by names with dots in them."""

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        super().__init__()
        for name, one in parameters.items():
            self.register_parameter(name.replace(".", "/"), nn.Parameter(one))

    def named(self) -> dict[str, Tensor]:
        return {name.replace("/", "."): one for name, one in self.named_parameters()}


def tensor_and_data_parallel(whole: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensor parallelism over two ranks, and of each of their parts FSDP over two."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    parts = {}
    for name, one in whole.items():
        side = one.dim() - 1 if name.endswith(_COLUMNS) else one.dim() - 2
        placement = Replicate() if name.endswith(_WHOLE) else Shard(max(side, 0))
        parts[name] = distribute_tensor(one, mesh["tensor"], [placement], src_data_rank=None)
    model = Holder(parts)
    fully_shard(model, mesh=mesh["data"])
    return model.named()


def pipeline_and_data_parallel(whole: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first block on two ranks, the second on the others, each part divided by FSDP, experts too."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pipeline", "data"))
    stage = mesh.get_local_rank("pipeline")
    first = ("embedding.", "blocks.0.")
    model = Holder({name: one for name, one in whole.items() if name.startswith(first) == (stage == 0)})
    fully_shard(model, mesh=mesh["data"])
    return model.named()


def replicated(whole: dict[str, Tensor]) -> dict[str, Tensor]:
    """As DDP keeps them: whole on each rank."""
    return whole


LAYOUTS = (tensor_and_data_parallel, pipeline_and_data_parallel, replicated)


def check(config: GPTConfig, source: Path, target: Path, divide: object) -> None:
    whole = blank(config)[1]
    read_model(source / "base", whole, config)
    if config.lora.enabled:
        read_adapter(source / "peft", whole, config)
    mine = divide(blank(config)[1])  # type: ignore[operator]
    read_model(source / "base", mine, config)
    if config.lora.enabled:
        read_adapter(source / "peft", mine, config)
    for name, one in mine.items():
        found = one.full_tensor() if hasattr(one, "full_tensor") else one
        assert torch.equal(found, whole[name]), name
    write_model(target / "model", mine, config, dtype="float32", max_shard_bytes=30_000, merge_lora=False)
    if config.lora.enabled:
        write_adapter(target / "adapter", mine, config)
        write_model(target / "merged", mine, config, dtype="float32")


def main() -> None:
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    for family in source.iterdir():
        config = read_config(family / "base")
        if (family / "peft").is_dir():
            config = replace(config, lora=read_lora(family / "peft"))
        for divide in LAYOUTS:
            check(config, family, target / family.name / divide.__name__, divide)
    try:  # what only the first rank meets is told to all
        write_model(source, blank(config)[1], config)
    except TrainingError as error:
        assert "exists already" in str(error)
    else:
        raise AssertionError("an existing folder was written to")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
