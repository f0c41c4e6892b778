"""Which rank does what: the meshes of all kinds of parallelism, and this rank's place in each.

Ranks are numbered with tensor parallelism fastest (its exchanges are the most, so they stay inside a node),
then context, data, and pipeline parallelism:

    rank = ((pipeline x data ranks + data) x context ranks + context) x tensor ranks + tensor

Three meshes cut the same ranks in that order. Their first and last dimensions are alike; what lies between
is cut by what is exchanged there: data and context (who reads what), replicate and shard (who holds which
part of a weight), or replicate, shard and expert (the same for the weights of experts).
"""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from nemorun.training.config import ParallelismConfig, TrainerConfig
from nemorun.training.distributed import Ranks


class Layout:
    """The meshes and this rank's coordinates. Every rank must make one, with the same arguments."""

    def __init__(self, trainer: TrainerConfig, parallelism: ParallelismConfig, ranks: Ranks) -> None:
        self.ranks = ranks
        self.parallelism = parallelism
        tensor, stages = parallelism.tensor_parallel, parallelism.pipeline_parallel
        context, experts = parallelism.context_parallel, parallelism.expert_parallel
        data = parallelism.data_ranks(ranks.world_size)
        holders = data * context
        replicas = holders if trainer.strategy == "ddp" else parallelism.replicate
        shards = holders // replicas

        kind = ranks.device.type
        self._data = init_device_mesh(
            kind, (stages, data, context, tensor), mesh_dim_names=("pipeline", "data", "context", "tensor")
        )
        self.weights = init_device_mesh(
            kind, (stages, replicas, shards, tensor), mesh_dim_names=("pipeline", "replicate", "shard", "tensor")
        )
        """The mesh of all weights but experts'."""
        self.experts = self.weights
        """The mesh of experts' weights, with a dimension `expert` where experts are divided."""
        if experts > 1:
            self.experts = init_device_mesh(
                kind,
                (stages, replicas, shards // experts, experts, tensor),
                mesh_dim_names=("pipeline", "replicate", "shard", "expert", "tensor"),
            )
        self.data_ranks = data
        self.data_rank: int = self._data.get_local_rank("data")
        self.stages = stages
        self.stage: int = self._data.get_local_rank("pipeline")
        self.context_ranks = context
        self.context_rank: int = self._data.get_local_rank("context")
        self.tensor_ranks = tensor
        self.tensor_rank: int = self._data.get_local_rank("tensor")

    @property
    def shares_weights(self) -> bool:
        """Whether other ranks hold parts or copies of this rank's weights, for other data."""
        return self.data_ranks * self.context_ranks > 1

    @property
    def speaks_for_data(self) -> bool:
        """One rank among those that read the same data: what is counted there is counted once."""
        return self.stage == self.context_rank == self.tensor_rank == 0

    @property
    def has_loss(self) -> bool:
        """One rank among those that computed the same part of the loss."""
        return self.stage == self.stages - 1 and self.tensor_rank == 0

    @property
    def tensor_group(self) -> dist.ProcessGroup | None:
        return self._group("tensor", self.tensor_ranks)

    @property
    def context_group(self) -> dist.ProcessGroup | None:
        return self._group("context", self.context_ranks)

    @property
    def pipeline_group(self) -> dist.ProcessGroup | None:
        return self._group("pipeline", self.stages)

    @property
    def expert_group(self) -> dist.ProcessGroup | None:
        ranks = self.parallelism.expert_parallel
        return self.experts.get_group("expert") if ranks > 1 else None

    def _group(self, name: str, ranks: int) -> dist.ProcessGroup | None:
        return self._data.get_group(name) if ranks > 1 else None

    def describe(self) -> str:
        """`2 data x 2 tensor`: the kinds that divide anything."""
        kinds = {
            "data": self.data_ranks,
            "context": self.context_ranks,
            "pipeline": self.stages,
            "tensor": self.tensor_ranks,
        }
        parts = [f"{count} {name}" for name, count in kinds.items() if count > 1]
        if self.parallelism.expert_parallel > 1:
            parts.append(f"experts over {self.parallelism.expert_parallel}")
        return " x ".join(parts) or "one rank"


def submesh(mesh: DeviceMesh, *names: str) -> DeviceMesh:
    """The dimensions `names` of a layout's mesh."""
    return mesh[names if len(names) > 1 else names[0]]
