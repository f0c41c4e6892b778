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
def _gate(both, inner, largest, pairs, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    first = tl.program_id(0) * ROWS
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, BLOCK)[None, :]
    here = first + row < pairs
    at = both + first.to(tl.int64) * 2 * BLOCK + row * 2 * BLOCK + column
    gate = tl.load(at, here, other=0.0).to(tl.float32)
    up = tl.load(at + BLOCK, here, other=0.0).to(tl.float32)
    value = gate * tl.sigmoid(gate) * up
    tl.store(inner + first.to(tl.int64) * BLOCK + row * BLOCK + column, value, here)
    tl.store(largest + tl.program_id(0), tl.max(tl.max(tl.abs(value), 1), 0))


@triton.jit
def _gate_backward(
    both, grad, result, largest, inner, pairs, BLOCK: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr
):
    first = tl.program_id(0) * ROWS
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, BLOCK)[None, :]
    here = first + row < pairs
    at = first.to(tl.int64) * 2 * BLOCK + row * 2 * BLOCK + column
    gate = tl.load(both + at, here, other=0.0).to(tl.float32)
    up = tl.load(both + at + BLOCK, here, other=0.0).to(tl.float32)
    at_inner = first.to(tl.int64) * BLOCK + row * BLOCK + column
    of_inner = tl.load(grad + at_inner, here, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    of_gate = of_inner * up * share * (1.0 + gate * (1.0 - share))
    of_up = of_inner * gate * share
    tl.store(result + at, of_gate, here)
    tl.store(result + at + BLOCK, of_up, here)
    if INNER:
        tl.store(inner + at_inner, gate * share * up, here)
    most = tl.maximum(tl.abs(of_gate), tl.abs(of_up))
    tl.store(largest + tl.program_id(0), tl.max(tl.max(most, 1), 0))


def gate(both: Tensor, inner: Tensor, largest: Tensor, block: int, pairs_at_once: int) -> None:
    """inner [T, F] = silu(gate) x up of both [T, 2 F], which stand in turns of `block`, a power of 2.

    largest [programs], float32: the largest magnitude that each program met in its `pairs_at_once` pairs of
    blocks.
    """
    if inner.numel():
        pairs = inner.numel() // block
        _gate[(len(largest),)](both, inner, largest, pairs, block, pairs_at_once)


def gate_backward(
    both: Tensor,
    grad: Tensor,
    result: Tensor,
    largest: Tensor,
    block: int,
    pairs_at_once: int,
    inner: Tensor | None = None,
) -> None:
    """result [T, 2 F]: the gradient of `both` from that of `gate`'s result [T, F]; `largest` as there.

    Fills `inner` with `gate`'s result, too, in the same pass.
    """
    if grad.numel():
        pairs = grad.numel() // block
        _gate_backward[(len(largest),)](
            both, grad, result, largest, grad if inner is None else inner, pairs,
            block, pairs_at_once, inner is not None,
        )  # fmt: skip


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


@triton.jit
def _norm(x, weight, normed, scale, columns, eps, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    here, at = column < columns, row * columns + column
    value = tl.load(x + at, here, other=0.0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(value * value, 0) / columns + eps)
    tl.store(scale + row, factor)
    value *= factor * tl.load(weight + column, here, other=0.0).to(tl.float32)
    tl.store(normed + at, value, here)


def norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As `nemorun.training.norm.norm`, of x whole in memory."""
    normed, scale = torch.empty_like(x), torch.empty(len(x), dtype=torch.float32, device=x.device)
    if x.numel():
        columns = x.shape[1]
        _norm[(len(x),)](x, weight, normed, scale, columns, eps, triton.next_power_of_2(columns), num_warps=8)
    return normed, scale


@triton.jit
def _norm_backward(grad, x, also, weight, scale, result, of_weight, rows, columns, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)
    here = column < columns
    factor = tl.load(weight + column, here, other=0.0).to(tl.float32)
    sums = tl.zeros((BLOCK,), tl.float32)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        at = tl.cast(row, tl.int64) * columns + column
        of_row = tl.load(scale + row)
        normed = tl.load(x + at, here, other=0.0).to(tl.float32) * of_row
        of_normed = tl.load(grad + at, here, other=0.0).to(tl.float32)
        sums += of_normed * normed
        of_normed *= factor
        along = tl.sum(of_normed * normed, 0) / columns
        value = (of_normed - normed * along) * of_row + tl.load(also + at, here, other=0.0).to(tl.float32)
        tl.store(result + at, value, here)
    tl.store(of_weight + tl.program_id(0).to(tl.int64) * columns + column, sums, here)


_NORMS_AT_ONCE = 3
"""Programs for each multiprocessor: as many as have room, and few sums to add up afterwards."""


@triton.jit
def _sum_rows(rows, total, count, columns, ADDS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = column < columns
    value = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in range(0, count, ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        value += tl.load(rows + row * columns + column[None, :], (row < count) & here[None, :], other=0.0)
    result = tl.sum(value, 0)
    if ADDS:
        result += tl.load(total + column, here, other=0.0).to(tl.float32)
    tl.store(total + column, result, here)


def norm_backward(
    grad: Tensor, x: Tensor, also: Tensor, weight: Tensor, scale: Tensor, of_weight: Tensor, adds: bool
) -> Tensor:
    """As `nemorun.training.norm.norm_backward`; the weight's gradient is written to `of_weight`, or added."""
    rows, columns = x.shape
    programs = _NORMS_AT_ONCE * torch.cuda.get_device_properties(x.device).multi_processor_count
    result, parts = torch.empty_like(x), torch.empty(programs, columns, dtype=torch.float32, device=x.device)
    _norm_backward[(programs,)](
        grad, x, also, weight, scale, result, parts, rows, columns,
        triton.next_power_of_2(columns), num_warps=8,
    )  # fmt: skip
    block = 32
    _sum_rows[(triton.cdiv(columns, block),)](parts, of_weight, programs, columns, adds, 32, block)
    return result


@triton.jit
def _rotated(
    qkv, query, key, value, cos, sin, tokens, angles, keys,
    QUERIES: tl.constexpr, HALF: tl.constexpr, TOKENS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)[:, None]
    channel, here = tl.arange(0, HALF)[None, :], token < tokens
    at_angle = (token % angles) * HALF + channel
    c = tl.load(cos + at_angle, here, other=0.0)
    s = tl.load(sin + at_angle, here, other=0.0)
    of_head = token * keys + tl.program_id(1)
    for part in tl.static_range(QUERIES + 2):
        whole = qkv + (of_head * (QUERIES + 2) + part) * 2 * HALF + channel
        if part < QUERIES:
            alone = query + (of_head * QUERIES + part) * 2 * HALF + channel
        elif part == QUERIES:
            alone = key + of_head * 2 * HALF + channel
        else:
            alone = value + of_head * 2 * HALF + channel
        if SPLITS:
            source, target = whole, alone
        else:
            source, target = alone, whole
        low, high = tl.load(source, here, other=0.0), tl.load(source + HALF, here, other=0.0)
        if part <= QUERIES:
            x, y = low.to(tl.float32), high.to(tl.float32)
            if SPLITS:
                low, high = x * c - y * s, y * c + x * s
            else:
                low, high = x * c + y * s, y * c - x * s
        tl.store(target, low, here)
        tl.store(target + HALF, high, here)


def split_rotated(qkv: Tensor, query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor) -> None:
    """qkv [B, S, G, Q + 2, K] into query [B, S, G Q, K], key and value [B, S, G, K]; the former two turned.

    cos and sin: [S, K / 2] or [B, S, K / 2], float32. K is a power of 2.
    """
    _rotate(qkv, query, key, value, cos, sin, splits=True)


def join_rotated(qkv: Tensor, query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor) -> None:
    """The other way, turning back: what `split_rotated` has made, or gradients of it, into qkv."""
    _rotate(qkv, query, key, value, cos, sin, splits=False)


def _rotate(
    qkv: Tensor, query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor, splits: bool
) -> None:
    rows, length, keys, parts, width = qkv.shape
    if qkv.numel():
        at_once = max(1, _ELEMENTS // width)
        _rotated[(triton.cdiv(rows * length, at_once), keys)](
            qkv, query, key, value, cos, sin, rows * length, cos.numel() // cos.shape[-1], keys,
            parts - 2, width // 2, at_once, splits,
        )  # fmt: skip


@triton.jit
def _softmax_sums(logits, highest, total, columns, LOWEST: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    most = LOWEST
    sums = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, columns, BLOCK):
        column = first + tl.arange(0, BLOCK)
        value = tl.load(logits + row * columns + column, column < columns, other=float("-inf"))
        value = value.to(tl.float32)
        now = tl.maximum(most, tl.max(value, 0))
        sums = sums * tl.exp(most - now) + tl.exp(value - now)
        most = now
    tl.store(highest + row, most)
    tl.store(total + row, tl.sum(sums, 0))


def softmax_sums(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of [N, V]: the highest logit, and the sum of exp(logit - highest), both in float32."""
    highest = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    total = torch.empty_like(highest)
    if logits.numel():
        lowest = torch.finfo(torch.float32).min  # as an infinity it would be subtracted from another
        _softmax_sums[(len(logits),)](
            logits.contiguous(), highest, total, logits.shape[1], lowest, _ELEMENTS, num_warps=4
        )
    return highest, total


@triton.jit
def _to_shares(logits, log_total, columns, BLOCK: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at, here = logits + row * columns + column, column < columns
    value = tl.load(at, here, other=0.0).to(tl.float32)
    tl.store(at, tl.exp(value - tl.load(log_total + row)), here)


def to_shares(logits: Tensor, log_total: Tensor) -> None:
    """exp(logits - log_total) of [N, V], whole in memory, and [N], in the logits' place; N up to 65,535."""
    rows, columns = logits.shape
    if logits.numel():
        _to_shares[(triton.cdiv(columns, _ELEMENTS), rows)](logits, log_total, columns, _ELEMENTS)


@triton.jit
def _add_up(rows, total, numel, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = at < numel
    value = tl.zeros((BLOCK,), tl.float32)
    for row in tl.static_range(ROWS):
        value += tl.load(rows + row * numel + at, here, other=0.0).to(tl.float32)
    tl.store(total + at, value, here)


def add_up(rows: Tensor, total: Tensor) -> None:
    """total [N] in float32 = the sum of rows [R, N]."""
    numel = total.numel()
    if numel:
        _add_up[(triton.cdiv(numel, _ELEMENTS),)](rows, total, numel, len(rows), _ELEMENTS)


@triton.jit
def _add(total, x, numel, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = at < numel
    value = tl.load(x + at, here, other=0.0).to(tl.float32)
    tl.store(total + at, tl.load(total + at, here, other=0.0) + value, here)


def add(total: Tensor, x: Tensor) -> None:
    """total += x, both whole in memory; total in float32."""
    numel = total.numel()
    if numel:
        _add[(triton.cdiv(numel, _ELEMENTS),)](total, x, numel, _ELEMENTS)


@triton.jit
def _thin_product(
    y, xa, b, rows, columns, rank, b_row, b_column,
    R: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    of_rank = tl.arange(0, R)
    left = tl.load(xa + row * rank + of_rank[None, :], (row < rows) & (of_rank[None, :] < rank), other=0.0)
    right = tl.load(
        b + column * b_row + of_rank[:, None] * b_column,
        (column < columns) & (of_rank[:, None] < rank),
        other=0.0,
    )
    tl.store(y + row * columns + column, tl.dot(left, right), (row < rows) & (column < columns))


THIN_TILE = (64, 128, 4)
"""Rows, columns and warps of a program that makes a thin product."""


def thin_product(xa: Tensor, b: Tensor) -> Tensor:
    """xa [T, R] @ b [O, R].T, for a small R: as fast as what it writes."""
    rows, columns = len(xa), len(b)
    y = xa.new_empty(rows, columns)
    r, c, warps = THIN_TILE
    padded = max(16, triton.next_power_of_2(xa.shape[1]))  # no smaller product is the hardware's
    if y.numel():
        _thin_product[(triton.cdiv(columns, c), triton.cdiv(rows, r))](
            y, xa.contiguous(), b, rows, columns, xa.shape[1], b.stride(0), b.stride(1),
            padded, r, c, num_warps=warps,
        )  # fmt: skip
    return y


@triton.jit
def _row_product(y, x, weight, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    sums = tl.zeros((BLOCK,), tl.float32)
    for first in tl.range(0, COLUMNS, BLOCK, num_stages=1):
        column = first + tl.arange(0, BLOCK)
        here = column < COLUMNS
        of_x = tl.load(x + column, here, other=0.0).to(tl.float32)
        # Nothing reads a weight again before all others have been read.
        at = weight + row.to(tl.int64) * COLUMNS + column
        sums += of_x * tl.load(at, here, other=0.0, eviction_policy="evict_first").to(tl.float32)
    tl.store(y + row, tl.sum(sums, 0))


def row_product(x: Tensor, weight: Tensor) -> Tensor:
    """x [1, D] @ weight [O, D].T, as fast as the weight is read."""
    y, columns = x.new_empty(1, len(weight)), x.shape[1]
    if y.numel():
        block = min(_ELEMENTS, triton.next_power_of_2(columns))
        _row_product[(len(weight),)](
            y, x.contiguous(), weight.contiguous(), columns, block, num_warps=max(1, block // 256)
        )
    return y
