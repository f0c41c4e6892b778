"""Kernels in Triton, for what torch.compile makes slower ones of; imported on GPUs only.

Each has a plain twin where it is used, with which tests/gpu/kernels_check.py compares it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ELEMENTS = 2048
"""That one program of an elementwise kernel works on."""


@triton.jit
def _gate(both, inner, pairs, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    first = tl.program_id(0) * ROWS
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, BLOCK)[None, :]
    here = first + row < pairs
    at = both + first.to(tl.int64) * 2 * BLOCK + row * 2 * BLOCK + column
    gate = tl.load(at, here, other=0.0).to(tl.float32)
    up = tl.load(at + BLOCK, here, other=0.0).to(tl.float32)
    tl.store(inner + first.to(tl.int64) * BLOCK + row * BLOCK + column, gate * tl.sigmoid(gate) * up, here)


@triton.jit
def _gate_backward(both, grad, result, pairs, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    first = tl.program_id(0) * ROWS
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, BLOCK)[None, :]
    here = first + row < pairs
    at = first.to(tl.int64) * 2 * BLOCK + row * 2 * BLOCK + column
    gate = tl.load(both + at, here, other=0.0).to(tl.float32)
    up = tl.load(both + at + BLOCK, here, other=0.0).to(tl.float32)
    of_inner = tl.load(grad + first.to(tl.int64) * BLOCK + row * BLOCK + column, here, other=0.0).to(
        tl.float32
    )
    share = tl.sigmoid(gate)
    tl.store(result + at, of_inner * up * share * (1.0 + gate * (1.0 - share)), here)
    tl.store(result + at + BLOCK, of_inner * gate * share, here)


def gate(both: Tensor, block: int) -> Tensor:
    """[T, 2 F] -> silu(gate) x up [T, F]; gates and ups stand in turns of `block`, a power of 2."""
    inner = both.new_empty(both.shape[0], both.shape[1] // 2)
    pairs, rows = inner.numel() // block, max(1, _ELEMENTS // block)
    if pairs:
        _gate[(triton.cdiv(pairs, rows),)](both, inner, pairs, block, rows)
    return inner


def gate_backward(both: Tensor, grad: Tensor, block: int) -> Tensor:
    """The gradient [T, 2 F] of `both` from that of `gate`'s result [T, F]."""
    result = torch.empty_like(both)
    pairs, rows = grad.numel() // block, max(1, _ELEMENTS // block)
    if pairs:
        _gate_backward[(triton.cdiv(pairs, rows),)](both, grad, result, pairs, block, rows)
    return result


@triton.jit
def _cast(
    x, scale, whole, turned, rows, columns,
    MOST: tl.constexpr, WHOLE: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64) * R + tl.arange(0, R)
    column = tl.program_id(0).to(tl.int64) * C + tl.arange(0, C)
    here = (row < rows)[:, None] & (column < columns)[None, :]
    value = tl.load(x + row[:, None] * columns + column[None, :], here, other=0.0).to(tl.float32)
    value *= 1.0 / tl.load(scale)
    value = tl.clamp(value, -MOST, MOST, propagate_nan=tl.PropagateNan.ALL)
    if WHOLE:
        tl.store(whole + row[:, None] * columns + column[None, :], value.to(whole.dtype.element_ty), here)
    cast = tl.trans(value.to(turned.dtype.element_ty))
    tl.store(turned + column[:, None] * rows + row[None, :], cast, tl.trans(here))


TILE = (128, 128, 8)
"""Rows, columns and warps of a program that casts."""


def cast_whole_and_turned(x: Tensor, scale: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """x [M, N] / scale in float8, as it lies [M, N] and with its columns as rows [N, M]."""
    whole = torch.empty_like(x, dtype=kind)
    return whole, _turned(x, scale, kind, whole)


def cast_turned(x: Tensor, scale: Tensor, kind: torch.dtype) -> Tensor:
    """x [M, N] / scale in float8 with its columns as rows [N, M]."""
    return _turned(x, scale, kind, None)


def _turned(x: Tensor, scale: Tensor, kind: torch.dtype, whole: Tensor | None) -> Tensor:
    """Fills `whole`, too, in the same pass."""
    rows, columns = x.shape
    turned = torch.empty(columns, rows, dtype=kind, device=x.device)
    r, c, warps = TILE
    _cast[(triton.cdiv(columns, c), triton.cdiv(rows, r))](
        x, scale, turned if whole is None else whole, turned, rows, columns,
        torch.finfo(kind).max, whole is not None, r, c, num_warps=warps,
    )  # fmt: skip
    return turned
