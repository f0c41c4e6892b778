"""Which rank does what: the meshes of all kinds of parallelism, and this rank's place in each.

Ranks are numbered with tensor parallelism fastest (its exchanges are the most, so they stay inside a node),
then context, data, and pipeline parallelism:

    rank = ((stage x data ranks + data) x context ranks + context) x tensor ranks + tensor

Weights are shared among the data and context ranks of a stage: `replicate` groups hold a copy each, whose
parts the `shard` ranks of a group divide. Experts' weights are cut once more, by `expert`. A dimension of one
rank is left out where nothing asks for it, because making groups of ranks takes time.
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
        self.tensor_ranks = parallelism.tensor_parallel
        self.context_ranks = parallelism.context_parallel
        self.data_ranks = parallelism.data_ranks(ranks.world_size)
        self.stages = parallelism.pipeline_parallel
        rest, self.tensor_rank = divmod(ranks.rank, self.tensor_ranks)
        rest, self.context_rank = divmod(rest, self.context_ranks)
        self.stage, self.data_rank = divmod(rest, self.data_ranks)

        holders = self.data_ranks * self.context_ranks
        replicas = holders if trainer.strategy == "ddp" else parallelism.replicate
        shards, experts = holders // replicas, parallelism.expert_parallel
        self.weights = self._mesh(replicate=replicas, shard=shards)
        """The mesh of all weights but experts'. None on a single rank."""
        self.experts = self.weights
        """The mesh of experts' weights, with a dimension `expert` where experts are divided."""
        if experts > 1:
            self.experts = self._mesh(replicate=replicas, shard=shards // experts, expert=experts)
        self.context_group = self._context_group()

    def _mesh(self, **shared: int) -> DeviceMesh | None:
        """The mesh of all ranks whose middle dimensions are `shared`."""
        sizes = {"pipeline": self.stages, **shared, "tensor": self.tensor_ranks}
        kept = {n: size for n, size in sizes.items() if size > 1 or (n == "shard" and self.shares_weights)}
        if not kept:
            return None
        return init_device_mesh(self.ranks.device.type, tuple(kept.values()), mesh_dim_names=tuple(kept))

    def _context_group(self) -> dist.ProcessGroup | None:
        """The ranks that divide this rank's sequences."""
        if self.context_ranks == 1:
            return None
        width = self.context_ranks * self.tensor_ranks
        groups = [
            [first + tensor + context * self.tensor_ranks for context in range(self.context_ranks)]
            for first in range(0, self.ranks.world_size, width)
            for tensor in range(self.tensor_ranks)
        ]
        own, _ = dist.new_subgroups_by_enumeration(groups)
        return own

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
        return self._group(self.weights, "tensor")

    @property
    def pipeline_group(self) -> dist.ProcessGroup | None:
        return self._group(self.weights, "pipeline")

    @property
    def expert_group(self) -> dist.ProcessGroup | None:
        return self._group(self.experts, "expert")

    def _group(self, mesh: DeviceMesh | None, name: str) -> dist.ProcessGroup | None:
        return mesh.get_group(name) if mesh and name in (mesh.mesh_dim_names or ()) else None

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


def submesh(mesh: DeviceMesh | None, *names: str) -> DeviceMesh:
    """Those of the dimensions `names` that a layout's mesh has."""
    assert mesh is not None and mesh.mesh_dim_names
    kept = tuple(name for name in names if name in mesh.mesh_dim_names)
    return mesh[kept if len(kept) > 1 else kept[0]]
