"""Where the documents of a micro-batch begin and end, in the forms that attention's kernels want."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._dynamo import maybe_mark_dynamic  # documented, for all its underscore

from nemorun.training.attention.zigzag import document_rectangles, fold, split_sequence


class Documents:
    """Made once for each micro-batch, on the host, so that nothing waits for the device during a step.

    `positions` [B, S] (the place of each token in its document) are those of whole rows, on the CPU. With
    context parallelism this is made for rank `rank` of `size`: for its two chunks, which count as rows of
    their own ([2 B, c]), and for what reaches from one chunk into another (`rectangles`).

    Under `torch.compile` a block must not be compiled again for every batch. So the number of borders is a
    variable for the compiler from the start, and the greatest length, which is one from the second value on,
    is rounded up to a power of two: a block is compiled twice at most. (The longest that there can be, the
    whole row, would spare that, but kernels then start many groups of threads for nothing.) The number of
    borders is rounded up as well, so that memory is asked for in few sizes; kernels skip empty documents.
    """

    ids: Tensor
    """[B, S] int32 on the device: which document of its row a token belongs to."""
    borders: Tensor
    """[N + 1] int32 on the device: where documents begin in the rows laid end to end ("cu_seqlens")."""
    longest: int
    """No document is longer."""
    flash: bool
    """Has the device FlashAttention? Asked here, since a compiled region cannot ask."""

    def __init__(self, positions: Tensor, device: torch.device, rank: int = 0, size: int = 1) -> None:
        positions = positions.cpu()
        self.rank, self.size = rank, size
        self.rectangles = document_rectangles(_numbered(positions), rank, size) if size > 1 else []
        rows = fold(split_sequence(positions, rank, size)) if size > 1 else positions
        ids = _numbered(rows)
        starts = ids.diff(dim=1, prepend=torch.zeros_like(ids[:, :1])).flatten().nonzero().flatten()
        total = rows.numel()
        lengths = starts.diff(append=torch.tensor([total]))
        borders = torch.full((_power_of_two(len(starts)) + 1,), total, dtype=torch.int32)
        borders[: len(starts)] = starts
        # Not 1: FlashAttention takes another way there, on which it does not expect empty documents.
        self.longest = min(max(_power_of_two(int(lengths.max())), 2), rows.shape[1])
        self.flash = has_flash(device)
        self.ids, self.borders = _to(ids.int(), device), _to(borders, device)
        maybe_mark_dynamic(self.borders, 0)

    def mask(self) -> Tensor:
        """[B, S, S] bool: does a token (first S) see another? For kernels that know no documents."""
        same = self.ids[:, :, None] == self.ids[:, None, :]
        return same.tril()


def has_flash(device: torch.device) -> bool:
    """Has `device` FlashAttention 2 as torch brings it? NVIDIA GPUs from Ampere on have."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _numbered(positions: Tensor) -> Tensor:
    """[B, S]: the number of each token's document in its row, from 1.

    A document begins where a token does not follow the one before it. The place 0 alone would not do: a
    chunk can begin in the midst of one.
    """
    begins = torch.ones_like(positions, dtype=torch.bool)
    begins[:, 1:] = positions[:, 1:] != positions[:, :-1] + 1
    return begins.cumsum(1)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _to(x: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":
        x = x.pin_memory()  # without it the copy waits for all that the device has to do
    return x.to(device, non_blocking=True)
