"""Rows that change places: in a tensor, or between ranks. Both pass gradients back the same way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def take_rows(x: Tensor, index: Tensor, places: Tensor) -> Tensor:
    """x[index]: [N, D] -> [T, D], where each row of `x` is taken equally often, T / N times.

    `places` [T] says where: row n stands at places[n * T / N] and the T / N - 1 that follow. With them the
    gradient is a sum in a fixed order. That of plain indexing is not: on a GPU it adds up as threads come.
    """
    return _TakeRows.apply(x, index, places)


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.rows = x.shape[0]
        return x[index]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        taken = grad[places]
        if places.shape[0] != ctx.rows:
            # The middle size is stated, for with no rows at all it could not be told.
            taken = taken.view(ctx.rows, places.shape[0] // ctx.rows, grad.shape[1]).sum(1)
        return taken, None, None


def exchange_rows(x: Tensor, send: Sequence[int], receive: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """Give the other ranks rows and get theirs: [sum(send), D] -> [sum(receive), D].

    The first send[0] rows go to the group's rank 0, and so on; what arrives stands in the order of the ranks.
    Every rank of the group must call it. Gradients go back the same way, unscaled.
    """
    return _ExchangeRows.apply(x, list(send), list(receive), group)


class _ExchangeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, send: list[int], receive: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.exchange = send, receive, group
        return _exchange(x, send, receive, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        send, receive, group = ctx.exchange
        return _exchange(grad, receive, send, group), None, None, None


def _exchange(x: Tensor, send: list[int], receive: list[int], group: dist.ProcessGroup) -> Tensor:
    received = x.new_empty(sum(receive), x.shape[1])
    dist.all_to_all_single(received, x.contiguous(), receive, send, group=group)
    return received
