"""One rank of a ring: all cases of ring attention against the same rows on one rank, in float32.

Started with the variables of torchrun. Says which case differs and by how much, and ends with 1.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import Tensor

from nemorun.training.attention import Documents, attend, ring_attend, split_sequence

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


def main() -> None:
    dist.init_process_group("gloo")
    found = []
    for seed, (name, rows) in enumerate(PACKED.items()):
        batches = [len(rows)] if rows else [1, 3]
        for batch in batches:
            for dtype in TOLERANCE:
                found += check(name, rows, batch, dtype, seed)
    dist.barrier()
    dist.destroy_process_group()
    print("\n".join(found))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
