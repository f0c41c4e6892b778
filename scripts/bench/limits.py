"""What a GPU needs for a row's matrix products and attention alone: the limits that `train.py` measures."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

FLOOR_TOKENS = 16_384
"""Tokens over which floors are measured at least, whatever a row's micro-batch is. One over fewer would be
of a shorter moment, in which a GPU's clock may be higher: floors are to be compared with each other."""

Work = list[tuple[int, Callable[[], object]]]
"""Operations, and how often each runs, in order."""


def speed_of(seconds: Callable[[Work], float], config: Any, rows: int, length: int, float8: bool) -> float:
    """Tokens/s by the `seconds` that the operations of rows x length tokens take."""
    return rows * length / seconds(operations(config, rows, length, float8))


def operations(config: Any, rows: int, length: int, float8: bool) -> Work:
    """The matrix products and attention of rows x length tokens, and how often each runs, in order.

    In bf16, or the blocks' matrices in `float8` without what it takes to get there (amax, casts, turning). A
    frozen weight has no gradient of its own; what is recomputed is not counted.
    """
    tokens = rows * length
    d, f, width = config.hidden_size, config.ffn_size, config.head_dim
    heads, groups = config.num_attention_heads, config.kv_heads
    shapes = [((heads + 2 * groups) * width, d), (d, heads * width), (2 * f, d), (d, f)]
    trains = not config.lora.enabled

    def products(out: int, into: int) -> list[Callable[[], object]]:
        x = torch.randn(tokens, into, device="cuda", dtype=torch.bfloat16)
        w = torch.randn(out, into, device="cuda", dtype=torch.bfloat16)
        y = torch.randn(tokens, out, device="cuda", dtype=torch.bfloat16)
        return [lambda: x @ w.T, lambda: y @ w, lambda: y.T @ x][: 2 + trains]

    def float8_products(out: int, into: int) -> list[Callable[[], object]]:
        one = torch.ones((), device="cuda")

        def operand(height: int, width: int, kind: torch.dtype = torch.float8_e4m3fn) -> Any:
            return torch.randn(height, width, device="cuda").to(kind)

        def product(a: Any, b: Any, quick: bool) -> Callable[[], object]:
            """a [M, K] and b [N, K]: both with K lying whole, as the product wants them."""
            scales = {"scale_a": one, "scale_b": one}
            return lambda: torch._scaled_mm(
                a, b.t(), **scales, out_dtype=torch.bfloat16, use_fast_accum=quick
            )

        g = torch.float8_e5m2
        return [
            product(operand(tokens, into), operand(out, into), quick=True),
            product(operand(tokens, out, g), operand(into, out), quick=False),
            product(operand(out, tokens, g), operand(into, tokens), quick=False),
        ][: 2 + trains]

    def attention() -> Callable[[], object]:
        q, k, v = (
            torch.randn(rows, n, length, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
            for n in (heads, groups, groups)
        )
        grad = torch.randn_like(q)

        def run() -> None:
            with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True):
                y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            torch.autograd.grad(y, (q, k, v), grad)

        return run

    of_blocks = float8_products if float8 else products
    of_layer = [product for shape in shapes for product in of_blocks(*shape)] + [attention()]
    layers = [(config.num_layers, run) for run in of_layer]
    return layers + [(1, run) for run in products(config.vocab_size, d)]


def floor_seconds(work: Work) -> float:
    """Seconds of the operations, each measured alone: ten times, which is a few milliseconds, in which
    a GPU runs as fast as it can."""

    def alone(run: Callable[[], object]) -> float:
        def times(count: int) -> None:
            for _ in range(count):
                run()

        times(3)
        return _seconds(partial(times, 10)) / 10

    return sum(count * alone(run) for count, run in work)


def sustained_seconds(work: Work) -> float:
    """Seconds of all of them in order, after seconds of that: as fast as a GPU can go on running under its
    limit of power."""

    def in_order() -> None:
        for number in range(max(count for count, _ in work)):
            for count, run in work:
                if number < count:
                    run()

    until = time.monotonic() + 4
    while time.monotonic() < until:
        _seconds(in_order)
    return statistics.median(_seconds(in_order) for _ in range(3))


def _seconds(run: Callable[[], object]) -> float:
    """Of the GPU."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000
