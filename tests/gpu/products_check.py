"""The matrices of a layer on a CUDA machine, with adapters and in float8: right, and in what time.

    python tests/gpu/products_check.py          one line for each; ends with 1 if one is wrong
    python tests/gpu/products_check.py --cpu    the same, small, without a GPU: tests this program

Each is compiled, as in training, with what stands around it: a norm before, and the gate of a feed-forward
layer after. Compared with float32 by the norm of the error, forward and in every gradient. It needs no pytest
and no network.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import torch.nn.functional as F
from torch import Tensor

from nemorun.training.adapted import Adapter, adapted_linear
from nemorun.training.fp8 import E4M3, quantized, scaled_linear
from tests.gpu.measuring import CUDA, DEVICE, HALF, failures, said, timed

TOKENS, WIDTH, CHANNELS, RANK = (8192, 4096, 14336, 32) if CUDA else (32, 64, 128, 4)
Product = Callable[..., Tensor]


def around(product: Product) -> Product:
    """Norm, product, gate."""

    def layer(x: Tensor, weight: Tensor, *adapter: Tensor) -> Tensor:
        y = product(F.rms_norm(x, x.shape[-1:]), weight, *adapter)
        gate, up = y.chunk(2, dim=-1)
        return F.silu(gate) * up

    return layer


def plain(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight)


def in_float8(x: Tensor, weight: Tensor) -> Tensor:
    return scaled_linear(x, weight)


def two_outputs(x: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return F.linear(x, weight) + 2.0 * F.linear(F.linear(x, a), b)


def one_output(x: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return adapted_linear(x, weight, Adapter(2.0 * a, b))


def frozen_float8(x: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return scaled_linear(x, weight, None, Adapter(2.0 * a, b))


def quantized_once(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    return scaled_linear(x, weight, scale, Adapter(2.0 * a, b))


def inputs(adapters: bool) -> tuple[list[Tensor], Tensor]:
    """x, weight, and A and B; and the gradient of the output."""
    numbers = torch.Generator(DEVICE).manual_seed(0)
    shapes = [(TOKENS, WIDTH), (2 * CHANNELS, WIDTH), *([(RANK, WIDTH), (2 * CHANNELS, RANK)] * adapters)]
    found = [torch.randn(*s, generator=numbers, device=DEVICE) / s[1] ** 0.5 for s in shapes]
    return found, torch.randn(TOKENS, CHANNELS, generator=numbers, device=DEVICE)


def check(name: str, product: Product, exact: Product, tolerance: float, kind: str) -> None:
    """`kind`: full, frozen, or once, which is frozen and quantized before."""
    given, grad = inputs(adapters=kind != "full")
    trained = [number for number in range(len(given)) if kind == "full" or number != 1]

    def learn(function: Product, tensors: list[Tensor], grad: Tensor, *rest: Tensor) -> list[Tensor]:
        leaves = [one.detach().requires_grad_(number in trained) for number, one in enumerate(tensors)]
        y = function(*leaves, *rest)
        return [y.detach(), *torch.autograd.grad(y, [leaves[number] for number in trained], grad)]

    with said(name):
        wanted = learn(around(exact), given, grad)
        half, rest = [one.to(HALF) for one in given], []
        if kind == "once":
            half[1], scale = quantized(half[1], E4M3)
            rest = [scale]
        layer = torch.compile(around(product), fullgraph=True)
        got = learn(layer, half, grad.to(HALF), *rest)
        errors = [float((g.float() - w).norm() / w.norm()) for g, w in zip(got, wanted, strict=True)]
        took = timed(lambda: learn(layer, half, grad.to(HALF), *rest))
        if not max(errors) < tolerance:
            failures.append(name)
        said_errors = ", ".join(f"{error:.1e}" for error in errors)
        print(
            f"{'ok   ' if max(errors) < tolerance else 'WRONG'} {name}: {took:.2f} ms, errors {said_errors}"
        )


def main() -> int:
    check("bfloat16", plain, plain, 0.02, "full")
    check("float8", in_float8, plain, 0.12, "full")
    check("adapter, two outputs", two_outputs, two_outputs, 0.02, "frozen")
    check("adapter, one output", one_output, two_outputs, 0.02, "frozen")
    check("adapter, float8", frozen_float8, two_outputs, 0.12, "frozen")
    check("adapter, float8 quantized once", quantized_once, two_outputs, 0.12, "once")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
