"""Parameters that are spread over ranks, brought whole to the first rank one at a time, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from nemorun.training.errors import TrainingError

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Gatherer:
    """Every rank of the group makes one, with the parameters that it has, and takes the same names."""

    def __init__(
        self,
        names: Sequence[str],
        parameters: Mapping[str, Tensor],
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """`names`: what may be taken. Ranks of a pipeline each have some of it, copies are allowed."""
        self._parameters = parameters
        self._group = group
        self._alone = not dist.is_initialized() or dist.get_world_size(group) == 1
        self.rank = 0 if self._alone else dist.get_rank(group)
        some = next(iter(parameters.values()), None)
        self._device = torch.device("cpu") if some is None else some.device
        types = torch.tensor(
            [_DTYPES.index(parameters[name].dtype) if name in parameters else -1 for name in names],
            device=self._device,
        )
        none = dist.get_world_size(group) if not self._alone else 1
        owners = torch.where(types >= 0, self.rank, none)
        if not self._alone:
            dist.all_reduce(owners, dist.ReduceOp.MIN, group)
            dist.all_reduce(types, dist.ReduceOp.MAX, group)
        self._owner = {n: one for n, one in zip(names, owners.tolist(), strict=True) if one < none}
        self._dtype = {n: _DTYPES[one] for n, one in zip(names, types.tolist(), strict=True) if one >= 0}

    @property
    def first(self) -> bool:
        return self.rank == 0

    def __contains__(self, name: str) -> bool:
        return name in self._owner

    def dtype(self, name: str) -> torch.dtype:
        return self._dtype[name]

    def require(self, names: Sequence[str]) -> None:
        missing = [name for name in names if name not in self]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise TrainingError(f"no rank has {', '.join(missing[:3])}{more}, so the model cannot be written")

    @torch.no_grad()
    def take(self, name: str, shape: tuple[int, ...]) -> Tensor | None:
        """The whole parameter on the first rank's CPU, None on the others. Collective."""
        whole = None
        if name in self._parameters:
            whole = self._parameters[name].detach()
            if isinstance(whole, DTensor):
                whole = whole.full_tensor()
        owner = self._owner[name]
        if owner != 0:
            if self.rank == owner:
                assert whole is not None
                dist.send(whole.contiguous(), group=self._group, group_dst=0)
            elif self.first:
                whole = torch.empty(shape, dtype=self._dtype[name], device=self._device)
                dist.recv(whole, group=self._group, group_src=owner)
        return whole.cpu() if whole is not None and self.first else None

    def agree(self, problem: str | None) -> None:
        """Raises TrainingError on every rank if the first rank has met a problem. Collective."""
        if not self._alone:
            told = [problem]
            dist.broadcast_object_list(told, group=self._group, group_src=0, device=self._device)
            problem = told[0]
        if problem is not None:
            raise TrainingError(problem)
