"""Rings of ranks: all cases of ring attention against the same rows on one rank, in float32.

`python -m tests.training.attention_ranks 1 2 4` starts rings of so many ranks, one after the other. It says
which case differs and by how much, and ends with 1.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from nemorun.training.attention import ATTENTION_OPERATORS, Documents, attend, ring_attend, split_sequence

LENGTH = 48
#: Lengths of a row's documents. Chunks are of 6 tokens on 4 ranks, 12 on 2.
ROWS = {
    "one document": [48],
    "on the borders of chunks": [6, 6, 12, 24],
    "before and after borders": [5, 8, 10, 2, 23],
    "over three chunks and more": [3, 24, 21],
    "of one token": [1] * 48,
    "of one token between long ones": [11, 1, 1, 22, 1, 12],
}
PACKED = {
    "none": None,
    **{name: [row] for name, row in ROWS.items()},
    "three rows": [ROWS["before and after borders"], ROWS["one document"], ROWS["of one token"]],
    "three other rows": [ROWS["over three chunks and more"], ROWS["on the borders of chunks"], [47, 1]],
}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
"""Of the greatest value, or of 1. One rank computes in float32, for bfloat16 from the same inputs."""


def positions_of(rows: list[list[int]]) -> Tensor:
    return torch.stack([torch.cat([torch.arange(length) for length in row]) for row in rows])


def tensors(rows: int, dtype: torch.dtype, seed: int) -> list[Tensor]:
    """Query, key, value and the gradient of the output for whole rows."""
    numbers = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, LENGTH, heads, 8, generator=numbers).to(dtype) for heads in (4, 2, 2, 4)]


def check(name: str, rows: list[list[int]] | None, batch: int, dtype: torch.dtype, seed: int) -> list[str]:
    rank, size = dist.get_rank(), dist.get_world_size()
    whole = tensors(batch, dtype, seed)
    positions = positions_of(rows) if rows else None

    inputs = [x.float().clone().requires_grad_() for x in whole[:3]]
    documents = None if positions is None else Documents(positions, torch.device("cpu"))
    expected = attend(*inputs, documents)
    expected.backward(whole[3].float())

    mine = [split_sequence(x, rank, size).clone().requires_grad_() for x in whole[:3]]
    documents = None if positions is None else Documents(positions, torch.device("cpu"), rank, size)
    out = ring_attend(*mine, documents, dist.group.WORLD)
    out.backward(split_sequence(whole[3], rank, size))

    found = []
    for what, got, wanted in zip(
        ("output", "gradient of query", "gradient of key", "gradient of value"),
        [out, *(x.grad for x in mine)],
        [expected, *(x.grad for x in inputs)],
        strict=True,
    ):
        assert got.dtype == dtype
        error = (got.float() - split_sequence(wanted, rank, size)).abs().max() / wanted.abs().max().clamp(
            min=1
        )
        if not error < TOLERANCE[dtype]:
            found.append(
                f"rank {rank} of {size}: documents {name}, {batch} rows, {dtype}: {what} {error:.2e}"
            )
    return found


def check_recomputed(kind: str) -> list[str]:
    """A block as models have it, compiled round a forward pass that is recomputed: the same gradients."""
    rank, size = dist.get_rank(), dist.get_world_size()
    positions = positions_of(PACKED["three rows"])
    documents = Documents(positions, torch.device("cpu"), rank, size)
    shares = [split_sequence(x, rank, size).clone() for x in tensors(3, torch.float32, 7)]

    def block(query: Tensor, key: Tensor, value: Tensor, documents: Documents) -> Tensor:
        return ring_attend(query.sin(), key, value, documents, dist.group.WORLD).tanh()

    def gradients(function: Any) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in shares[:3]]
        return list(torch.autograd.grad(function(*leaves, documents), leaves, shares[3]))

    def policy(context: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
        keep = operator in ATTENTION_OPERATORS
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    options = (
        {"context_fn": partial(create_selective_checkpoint_contexts, policy)} if kind == "selective" else {}
    )
    recomputed = partial(checkpoint, block, use_reentrant=False, **options)
    compiled = torch.compile(recomputed, backend="aot_eager")
    wanted = gradients(block)
    found = []
    for how, function in (("eager", recomputed), ("compiled", compiled), ("compiled again", compiled)):
        for got, expected in zip(gradients(function), wanted, strict=True):
            if not torch.allclose(got, expected, atol=1e-6):
                found.append(
                    f"rank {rank} of {size}: recomputed ({kind}, {how}) {(got - expected).abs().max()}"
                )
    return found


def rank_of(rank: int, size: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    found = check_recomputed("full") + check_recomputed("selective") if size == 2 else []
    for seed, (name, rows) in enumerate(PACKED.items()):
        batches = [len(rows)] if rows else [1, 3]
        for batch in batches:
            for dtype in TOLERANCE:
                found += check(name, rows, batch, dtype, seed)
    dist.barrier()
    dist.destroy_process_group()
    for line in found:
        print(line, flush=True)
    sys.exit(bool(found))


def main() -> None:
    # Torch is imported once, and has no threads yet: ranks that are forked start at once.
    forking = multiprocessing.get_context("fork")
    failed = False
    for size in map(int, sys.argv[1:]):
        with tempfile.TemporaryDirectory() as folder:
            ranks = [
                forking.Process(target=rank_of, args=(rank, size, f"{folder}/store")) for rank in range(size)
            ]
            for rank in ranks:
                rank.start()
            for rank in ranks:
                rank.join()
            codes = [rank.exitcode for rank in ranks]
            print(f"{size} ranks ended with {codes}", flush=True)
            failed |= any(codes)
    sys.exit(failed)


if __name__ == "__main__":
    main()
