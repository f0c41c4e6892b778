"""What the checks here compare, and how: inputs, plain products in float32, time, a line for each path."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from nemorun.training.attention import Documents
from nemorun.training.attention.blocks import Products

CUDA = "--cpu" not in sys.argv
DEVICE = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if CUDA else torch.device("cpu")
ROWS, LENGTH, HEADS, GROUPS, WIDTH = (2, 2048, 32, 8, 128) if CUDA else (2, 64, 4, 2, 16)
LARGE = (2, 8192) if CUDA else (2, 128)
HALF = torch.bfloat16
#: Error by norm, and at the worst place in parts of the greatest value.
TOLERANCE = {torch.float32: (1e-4, 1e-3), HALF: (1e-2, 5e-2)}

failures: list[str] = []


def tensors(rows: int = ROWS, length: int = LENGTH, dtype: torch.dtype = HALF) -> list[Tensor]:
    """Query, key, value (the two in one tensor, as a model has them) and the gradient of the output."""
    numbers = torch.Generator(DEVICE).manual_seed(length)
    make = lambda *shape: torch.randn(*shape, generator=numbers, device=DEVICE).to(dtype)  # noqa: E731
    both = make(rows, length, GROUPS, 2, WIDTH)
    return [
        *(make(rows, length, HEADS, WIDTH), both[..., 0, :], both[..., 1, :]),
        make(rows, length, HEADS, WIDTH),
    ]


def packed(rows: int = ROWS, length: int = LENGTH, seed: int = 0, longest: int | None = None) -> Tensor:
    """Positions [rows, length] of documents of random lengths, a few of one token."""
    numbers = torch.Generator().manual_seed(seed)
    lines = []
    for _ in range(rows):
        line: list[Tensor] = []
        while sum(map(len, line)) < length:
            most = 1 if len(line) % 5 == 4 else longest or length // 2
            line.append(torch.arange(int(torch.randint(1, most + 1, (), generator=numbers))))
        lines.append(torch.cat(line)[:length])
    return torch.stack(lines)


def exact(inputs: list[Tensor], documents: Documents | None) -> list[Tensor]:
    """Output and gradients in float32, a row at a time."""
    plain, parts = Products(), []
    for row in range(inputs[0].shape[0]):
        query, key, value, grad = (x[row : row + 1].float() for x in inputs)
        own = None if documents is None else SimpleNamespace(mask=lambda at=row: documents.mask()[at, None])
        out, lse = plain.forward(query, key, value, True, own)  # type: ignore[arg-type]
        parts.append((out, *plain.backward(grad, query, key, value, out, lse, True, own)))  # type: ignore[arg-type]
    return [torch.cat(x) for x in zip(*parts, strict=True)]


def with_gradients(function: Callable[..., Tensor], inputs: list[Tensor], *rest: Any) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs[:3]]
    out = function(*leaves, *rest)
    return [out.detach(), *torch.autograd.grad(out, leaves, inputs[3])]


def timed(work: Callable[[], Any], repeat: int = 10) -> float:
    """Milliseconds."""
    for _ in range(3):
        work()
    if not CUDA:
        return 0.0
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeat):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeat * 1e3


def report(name: str, got: list[Tensor], wanted: list[Tensor], dtype: torch.dtype, took: float) -> None:
    by_norm = max(
        float((g.float() - w).norm() / w.norm().clamp(min=1e-6)) for g, w in zip(got, wanted, strict=True)
    )
    worst = max(
        float((g.float() - w).abs().max() / w.abs().max().clamp(min=1e-6))
        for g, w in zip(got, wanted, strict=True)
    )
    right = by_norm < TOLERANCE[dtype][0] and worst < TOLERANCE[dtype][1]
    if not right:
        failures.append(name)
    print(
        f"{'ok   ' if right else 'WRONG'} {name}: error {by_norm:.1e}, worst {worst:.1e}, {took:.2f} ms",
        flush=True,
    )


@contextlib.contextmanager
def said(name: str) -> Iterator[None]:
    """A path that cannot run is a failure, and the others run still."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever it is, it is reported
        failures.append(name)
        print(f"WRONG {name}: {type(error).__name__}: {str(error)[:600]}", flush=True)
