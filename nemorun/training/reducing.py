"""FSDP's gradients, sent as they were computed and added up in float32 by the rank that owns them.

torch's own way turns the gradients of a unit into float32 before NCCL adds them up. These are the same sums,
but half of the bytes are written, read and sent. And products run beside NCCL for half as long, which counts:
it holds multiprocessors on which their last tiles wait.

Each rank sends every other one its part. Between nodes, where NCCL adds up on the way so that less goes over
each wire, that would be more; so it is for ranks of one node.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter

from nemorun.training.compiling import HAS_TRITON


class SumAtOwner(ReduceScatter):
    """Reduce-scatter of [ranks x N] in the gradients' type to [N] in float32.

    For FSDP units without a `reduce_dtype`; they may share one.
    """

    def __init__(self) -> None:
        self._has_input = False

    def allocate(self, size: Sequence[Any], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A unit's input, then its output: in this order FSDP asks for them, both in the gradients' type."""
        kind = torch.float32 if self._has_input else dtype
        self._has_input = not self._has_input
        return torch.empty(*size, dtype=kind, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        assert op == dist.ReduceOp.SUM and output_tensor.dtype == torch.float32
        received = torch.empty_like(input_tensor)
        dist.all_to_all_single(received, input_tensor, group=group)
        add_up(received.view(group.size(), -1), output_tensor)


def add_up(rows: Tensor, total: Tensor) -> None:
    """total [N] in float32 = the sum of rows [R, N], without rounding in between."""
    if rows.is_cuda and HAS_TRITON:
        from nemorun.training import kernels

        kernels.add_up(rows, total)
    else:
        torch.sum(rows, dim=0, dtype=torch.float32, out=total)


def on_one_node(group: dist.ProcessGroup) -> bool:
    """Whether the ranks of `group` run on the same node; they are numbered node by node."""
    on_each = int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))
    return len({rank // on_each for rank in dist.get_process_group_ranks(group)}) == 1
