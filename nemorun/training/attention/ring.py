"""Ring attention: exact attention over a sequence that several ranks share, keys and values going round.

Liu, Zaharia and Abbeel, arXiv:2310.01889. In step s rank r multiplies its queries with the keys of rank r - s
while it already passes them on to rank r + 1. The parts of the softmax are merged by their log-sum-exps. In
the backward pass the gradients of keys and values travel too, one step behind, and end where they belong.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from nemorun.training.attention.blocks import BlockKernel, block_kernel
from nemorun.training.attention.documents import Documents
from nemorun.training.attention.kernels import attend
from nemorun.training.attention.zigzag import Rectangle, fold, unfold, whole_rectangles


@torch.compiler.disable
def ring_attend(
    query: Tensor, key: Tensor, value: Tensor, documents: Documents | None, group: ProcessGroup
) -> Tensor:
    """Causal attention of this rank's queries [B, 2 c, H, K] to the keys and values [B, 2 c, G, K] of all.

    Each rank holds two chunks of the sequence, as `split_sequence` shares it out. Every rank of the group
    must call it, and its backward pass. It is not compiled: a compiled block breaks here into two graphs.
    """
    size = dist.get_world_size(group)
    if documents is not None and (documents.rank, documents.size) != (dist.get_rank(group), size):
        raise ValueError(
            f"documents made for rank {documents.rank} of {documents.size} are of no use to rank "
            f"{dist.get_rank(group)} of {size}"
        )
    if size == 1:
        return attend(query, key, value, documents)
    return _RingAttention.apply(query, key, value, documents, group)


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, documents: Documents | None, group: ProcessGroup
    ) -> Tensor:
        ctx.kernel = block_kernel(query, documents is not None)
        ctx.documents, ctx.group = documents, group
        ctx.steps = _steps(query, documents, group)
        both = torch.stack((key, value))
        out, lse = _own_chunks(ctx.kernel, query, key, value, documents)
        for step, rectangles in enumerate(ctx.steps):
            coming = _PassedOn(both, group) if step + 1 < len(ctx.steps) else None
            for rows, queries, keys in rectangles:
                part = ctx.kernel.forward(
                    query[rows, queries], both[0, rows, keys], both[1, rows, keys], causal=False
                )
                _merge(out[rows, queries], lse[rows, queries], *part)
            if coming:
                both = coming.wait()
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, out, lse = ctx.saved_tensors
        both = torch.stack((key, value))
        grad_query = torch.zeros_like(query, dtype=torch.float32)
        returning: _PassedOn | None = None
        for step, rectangles in enumerate(ctx.steps):
            coming = _PassedOn(both, ctx.group) if step + 1 < len(ctx.steps) else None
            # In float32 also on their way: each rank adds to them.
            grad_both = torch.zeros_like(both, dtype=torch.float32)
            if step == 0:
                own = _own_chunks_backward(ctx.kernel, grad, query, key, value, out, lse, ctx.documents)
                _add(Rectangle(*[slice(None)] * 3), own, grad_query, grad_both)
            for rectangle in rectangles:
                rows, queries, keys = rectangle
                mine = (rows, queries)
                part = ctx.kernel.backward(
                    grad[mine],
                    query[mine],
                    both[0, rows, keys],
                    both[1, rows, keys],
                    out[mine],
                    lse[mine],
                    causal=False,
                )
                _add(rectangle, part, grad_query, grad_both)
            if returning:
                grad_both += returning.wait()
            returning = _PassedOn(grad_both, ctx.group)
            if coming:
                both = coming.wait()
        assert returning
        grad_key, grad_value = returning.wait()
        return grad_query.to(query.dtype), grad_key.to(key.dtype), grad_value.to(value.dtype), None, None


def _steps(query: Tensor, documents: Documents | None, group: ProcessGroup) -> list[list[Rectangle]]:
    if documents is not None:
        return documents.rectangles
    return whole_rectangles(query.shape[1], dist.get_rank(group), dist.get_world_size(group))


def _own_chunks(
    kernel: BlockKernel, query: Tensor, key: Tensor, value: Tensor, documents: Documents | None
) -> tuple[Tensor, Tensor]:
    """What needs a mask -> out [B, 2 c, H, K] and lse [B, 2 c, H], both in float32 and no one else's memory.

    Without documents, a rank's two chunks are causal as if they were neighbours. With documents each is for
    itself: two chunks with others between them may hold parts of one document, or of two.
    """
    if documents is None:
        out, lse = kernel.forward(query, key, value, causal=True)
    else:
        parts = kernel.forward(fold(query), fold(key), fold(value), causal=True, documents=documents)
        out, lse = map(unfold, parts)
    return (
        out.to(torch.float32, copy=True, memory_format=torch.contiguous_format),
        lse.clone(memory_format=torch.contiguous_format),
    )


def _own_chunks_backward(
    kernel: BlockKernel,
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    documents: Documents | None,
) -> tuple[Tensor, ...]:
    if documents is None:
        return kernel.backward(grad, query, key, value, out, lse, causal=True)
    grad, query, key, value, out, lse = map(fold, (grad, query, key, value, out, lse))
    grads = kernel.backward(grad, query, key, value, out, lse, causal=True, documents=documents)
    return tuple(map(unfold, grads))


def _merge(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Add to `out` and `lse`, in place, what the same queries get from other keys."""
    both = torch.logaddexp(lse, part_lse)
    out.mul_((lse - both).exp_()[..., None]).add_(part * (part_lse - both).exp_()[..., None])
    lse.copy_(both)


def _add(at: Rectangle, part: tuple[Tensor, ...], grad_query: Tensor, grad_both: Tensor) -> None:
    for whole, where, gradient in zip(
        (grad_query, grad_both[0], grad_both[1]), (at.queries, at.keys, at.keys), part, strict=True
    ):
        whole[at.rows, where].add_(gradient)


class _PassedOn:
    """A tensor on its way to the next rank of the ring, and the previous rank's on its way here."""

    def __init__(self, sent: Tensor, group: ProcessGroup) -> None:
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        self.sent, self.received = sent, torch.empty_like(sent)
        self.works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, sent, dist.get_global_rank(group, (rank + 1) % size), group),
                dist.P2POp(dist.irecv, self.received, dist.get_global_rank(group, (rank - 1) % size), group),
            ]
        )

    def wait(self) -> Tensor:
        """On a GPU the stream waits and not the program."""
        for work in self.works:
            work.wait()
        return self.received
