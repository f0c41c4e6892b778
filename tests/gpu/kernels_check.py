"""Kernels beside training's matrices on a CUDA machine: right, and in what part of the memory's speed.

    python tests/gpu/kernels_check.py           one line for each; ends with 1 if one is wrong
    python tests/gpu/kernels_check.py --tune    casts with tiles of other sizes, too
    python tests/gpu/kernels_check.py --cpu     the same, small, without a GPU: tests this program

Each is compared with plain operators in float32. It needs no pytest and no network.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import torch.nn.functional as F
from torch import Tensor

from nemorun.training import adapted, fp8, gating, loss, norm, optimizer, reducing, rotary
from nemorun.training.fp8 import E4M3, E5M2
from nemorun.training.products import add, add_product, product, row_product
from tests.gpu.measuring import CUDA, DEVICE, HALF, failures, said, timed

TOKENS, CHANNELS, VOCABULARY, WIDTH = (16384, 14336, 128256, 4096) if CUDA else (32, 128, 100, 16)
ODD = (1000, 336) if CUDA else (24, 40)


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = HALF) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator(DEVICE).manual_seed(seed), device=DEVICE).to(dtype)


def line(name: str, error: float, most: float, work: Callable[[], object], moved: int) -> None:
    """`moved`: the bytes that it must read and write."""
    took = timed(work)
    good = error <= most
    if not good:
        failures.append(name)
    speed = moved / took / 1e6 if took else 0.0
    print(
        f"{'ok   ' if good else 'WRONG'} {name}: error {error:.1e}, {took:.3f} ms, {speed:,.0f} GB/s",
        flush=True,
    )


def apart(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).norm() / other.float().norm())


def gates() -> None:
    for block in (64, 8, 1):
        tokens = TOKENS if block == 64 else ODD[0]
        both, grad = drawn(tokens, 2 * CHANNELS), drawn(tokens, CHANNELS, seed=1)
        with said(f"gate, blocks of {block}"):
            part = slice(0, 500)  # in float32, all would be too large
            leaf = both[part].float().requires_grad_()
            wanted = gating._plain(leaf, block)
            wanted.backward(grad[part].float())
            inner, largest = torch.ops.nemorun.gate(both, block)
            largest_is(inner, largest)
            line(
                f"gate, blocks of {block}",
                apart(inner[part], wanted.detach()),
                5e-3,
                lambda both=both, block=block: torch.ops.nemorun.gate(both, block),
                6 * inner.numel(),
            )
            result, largest = torch.ops.nemorun.gate_backward(both, grad, block)
            largest_is(result, largest)
            assert leaf.grad is not None
            line(
                f"gate's gradient, blocks of {block}",
                apart(result[part], leaf.grad),
                5e-3,
                lambda both=both, block=block, grad=grad: torch.ops.nemorun.gate_backward(both, grad, block),
                10 * inner.numel(),
            )


def joined_gates() -> None:
    both, grad, block = drawn(TOKENS, 2 * CHANNELS), drawn(TOKENS, CHANNELS, seed=1), 64 if CUDA else 8
    with said("gate's gradient and the gate"):
        result, inner = torch.ops.nemorun.gate_backward_and_gate(both, grad, block)
        same = torch.equal(result, torch.ops.nemorun.gate_backward(both, grad, block)[0])
        same = same and torch.equal(inner, torch.ops.nemorun.gate(both, block)[0])
        line(
            "gate's gradient and the gate",
            float(not same),
            0.0,
            lambda: torch.ops.nemorun.gate_backward_and_gate(both, grad, block),
            12 * inner.numel(),
        )


def norms() -> None:
    for rows, columns in ((TOKENS, WIDTH), ODD):
        grad, x, also = (drawn(rows, columns, seed=seed) for seed in range(3))
        weight = drawn(columns, seed=3)
        with said(f"norm {rows} x {columns}"):
            leaf, scale_of = x.float().requires_grad_(), weight.float().requires_grad_()
            F.rms_norm(leaf, (columns,), scale_of, 1e-5).backward(grad.float())
            normed, scale = norm.norm(x, weight, 1e-5)
            exact = torch.rsqrt(x.float().square().mean(-1) + 1e-5)
            line(
                f"norm {rows} x {columns}",
                max(apart(normed, x * exact[:, None] * weight.float()), apart(scale, exact)),
                5e-3,
                lambda parts=(x, weight, 1e-5): norm.norm(*parts),
                4 * x.numel(),
            )
            result, of_weight = norm.norm_backward(grad, x, also, weight, scale)
            assert leaf.grad is not None and scale_of.grad is not None
            line(
                f"norm's gradient {rows} x {columns}",
                max(apart(result, leaf.grad + also.float()), apart(of_weight, scale_of.grad)),
                5e-3,
                lambda parts=(grad, x, also, weight, scale): norm.norm_backward(*parts),
                8 * x.numel(),
            )
            total = torch.ones_like(weight, dtype=torch.float32)
            same = torch.equal(result, norm.summed_norm_backward(grad, x, also, weight, scale, total))
            line(
                f"norm's gradient added {rows} x {columns}",
                max(apart(total - 1, scale_of.grad), float(not same)),
                5e-3,
                lambda parts=(grad, x, also, weight, scale, total): norm.summed_norm_backward(*parts),
                8 * x.numel(),
            )


def rotations() -> None:
    shape = (2, TOKENS // 2, 8, 6, 128) if CUDA else (2, 6, 2, 4, 8)
    qkv, angles = drawn(*shape), drawn(shape[1], shape[-1] // 2, dtype=torch.float32)
    cos, sin = angles.cos(), angles.sin()
    with said("rotation"):
        parts = torch.ops.nemorun.split_rotated(qkv, cos, sin)
        query = rotary.rotate(qkv[..., :-2, :].flatten(2, 3).float(), cos, sin)
        wanted = (query, rotary.rotate(qkv[..., -2, :].float(), cos, sin), qkv[..., -1, :])
        line(
            "rotation",
            max(apart(ours, theirs) for ours, theirs in zip(parts, wanted, strict=True)),
            5e-3,
            lambda: torch.ops.nemorun.split_rotated(qkv, cos, sin),
            4 * qkv.numel(),
        )
        line(
            "rotation back",
            apart(torch.ops.nemorun.join_rotated(*parts, cos, sin), qkv),
            7e-3,
            lambda: torch.ops.nemorun.join_rotated(*parts, cos, sin),
            4 * qkv.numel(),
        )


def additions() -> None:
    for shape in ((TOKENS, WIDTH), ODD):
        x = drawn(*shape)
        total = drawn(*shape, seed=1, dtype=torch.float32)
        with said(f"sum {shape}"):
            wanted = total + x
            add(total, x)
            line(f"sum {shape}", apart(total, wanted), 1e-6, partial(add, total, x), 10 * x.numel())


def float8_sums() -> None:
    for out, into in ((2 * CHANNELS, WIDTH), (WIDTH, CHANNELS)):
        name = f"float8 product added ({out}, {into})"
        with said(name):
            g8, g_scale = fp8.quantized(drawn(out, TOKENS // 2), E5M2)
            x8, x_scale = fp8.quantized(drawn(into, TOKENS // 2, seed=1), E4M3)
            total = drawn(out, into, seed=2, dtype=torch.float32)
            wanted = total[:100] + g8[:100].float() @ x8.float().t() * (g_scale * x_scale)
            factors = (g8, x8, g_scale, x_scale, HALF)
            fp8._add_product(total, *factors)
            error = apart(total[:100], wanted)
            line(name, error, 5e-3, partial(fp8._add_product, total, *factors), 8 * total.numel())
            alone = timed(partial(fp8._product, *factors))
            print(f"      the product alone: {alone:.3f} ms", flush=True)


def products() -> None:
    kept, wide = "product added to what is kept", "wide product"
    kinds = (
        (kept, WIDTH, WIDTH),
        (kept, WIDTH, CHANNELS),
        (kept, *ODD),
        (wide, 2 * CHANNELS, WIDTH),
        (wide, *ODD),
    )
    for kind, out, into in kinds:
        x, weight = drawn(TOKENS // 2, into), drawn(out, into, seed=1)
        more = drawn(TOKENS // 2, out, seed=2) if kind == kept else None
        name = f"{kind} ({out}, {into})"
        with said(name):
            wanted = x[:100].float() @ weight.float().t() + (0 if more is None else more[:100].float())
            work = partial(product, x, weight, more)
            line(
                name, apart(work()[:100], wanted), 5e-3, work, 2 * (x.numel() + weight.numel() + len(x) * out)
            )
            print(f"      torch's, without adding: {timed(partial(F.linear, x, weight)):.3f} ms", flush=True)


def largest_is(x: Tensor, largest: Tensor) -> None:
    if largest.amax().to(x.dtype) != x.abs().amax():
        failures.append("largest")
        print(f"WRONG the largest magnitude is {x.abs().amax()}, not {largest.amax()}")


def casts() -> None:
    for shape, kind in (((TOKENS, 2 * CHANNELS), E5M2), ((TOKENS, WIDTH), E4M3), (ODD, E4M3), (ODD, E5M2)):
        x = drawn(*shape)
        x[1, 2] = 1e-4
        scale = fp8._scale(x.abs(), kind)
        wanted = fp8._cast(x, scale, kind)
        with said(f"cast {shape}"):
            whole, turned = torch.ops.nemorun.cast_whole_and_turned(x, scale, kind)
            wrong = float((whole.float() != wanted.float()).float().mean())
            wrong += float((turned.float() != wanted.t().float()).float().mean())
            line(
                f"cast whole and turned {shape} to {kind}, shares that differ",
                wrong,
                1e-3,
                lambda x=x, scale=scale, kind=kind: torch.ops.nemorun.cast_whole_and_turned(x, scale, kind),
                4 * x.numel(),
            )
        if kind == E4M3:
            with said(f"cast turned {shape}"):
                turned = torch.ops.nemorun.cast_turned(x, scale)
                line(
                    f"cast turned {shape}",
                    float((turned.float() != wanted.t().float()).float().mean()),
                    1e-3,
                    lambda x=x, scale=scale: torch.ops.nemorun.cast_turned(x, scale),
                    3 * x.numel(),
                )
    with said("cast of no number"):
        x[3, 5] = torch.nan
        for one in torch.ops.nemorun.cast_whole_and_turned(x, scale, E5M2):
            if int(one.float().isnan().sum()) != 1:
                failures.append("nan")
                print("WRONG a cast hides what is no number")


def tune() -> None:
    from nemorun.training import kernels

    x = drawn(TOKENS, 2 * CHANNELS)
    scale = fp8._scale(x.abs(), E5M2)
    for tile in [(r, c, w) for r in (32, 64, 128) for c in (32, 64, 128, 256) for w in (4, 8)]:
        kernels.TILE = tile
        took = timed(lambda: torch.ops.nemorun.cast_whole_and_turned(x, scale, E5M2))
        alone = timed(lambda: torch.ops.nemorun.cast_turned(x, scale))
        print(f"cast in tiles of {tile}: {took:.3f} ms, only turned {alone:.3f} ms", flush=True)

    xa, b = drawn(TOKENS // 2, 32, seed=1), drawn(2 * CHANNELS, 32, seed=2)
    za, c = drawn(TOKENS // 2, 16, seed=1), drawn(16, CHANNELS, seed=2).t()
    for tile in [(r, k, w) for r in (32, 64, 128) for k in (64, 128, 256) for w in (4, 8)]:
        kernels.THIN_TILE = tile
        took = timed(lambda: adapted.thin_product(xa, b))
        turned = timed(lambda: adapted.thin_product(za, c))
        print(f"thin product in tiles of {tile}: {took:.3f} ms, turned {turned:.3f} ms", flush=True)


def rows() -> None:
    for outputs, inputs in ((2 * CHANNELS, WIDTH), (WIDTH, CHANNELS), (VOCABULARY, WIDTH), ODD):
        x, weight = drawn(1, inputs), drawn(outputs, inputs, seed=1)
        with said(f"product of one row ({outputs}, {inputs})"):
            wanted = x.float() @ weight.float().T
            error = apart(row_product(x, weight), wanted)
            name = f"product of one row ({outputs}, {inputs})"
            line(name, error, 5e-3, lambda: row_product(x, weight), 2 * weight.numel())  # noqa: B023
            print(f"      torch's: {timed(lambda: x @ weight.T):.3f} ms", flush=True)  # noqa: B023


def losses() -> None:
    rows = 8192 if CUDA else 8
    x, weight = drawn(rows, WIDTH), drawn(VOCABULARY, WIDTH, seed=1) / WIDTH**0.5
    labels = torch.randint(0, VOCABULARY, (rows,), device=DEVICE)
    labels[::7] = loss.IGNORE
    logits = x @ weight.T
    with said("loss"):
        exact = logits[: rows // 2].float().requires_grad_()
        wanted = F.cross_entropy(exact, labels[: rows // 2], ignore_index=loss.IGNORE, reduction="sum")
        wanted.backward()
        found = loss._of_rows(logits[: rows // 2], labels[: rows // 2], 0, None, True)
        assert exact.grad is not None
        error = max(abs(float(found / wanted.detach()) - 1), apart(logits[: rows // 2], exact.grad))
        line(
            "loss and gradient of logits",
            error,
            5e-3,
            lambda: loss._of_rows(logits, labels, 0, None, True),
            6 * logits.numel(),
        )
    gradient = drawn(rows, VOCABULARY, seed=2)
    total = drawn(VOCABULARY, WIDTH, dtype=torch.float32)
    with said("product added in float32"):
        part = slice(0, 1000)
        wanted = total[part] + gradient[:, part].T.float() @ x.float()
        kept = total.clone()
        add_product(kept, gradient.T, x)
        line(
            "product added in float32",
            apart(kept[part], wanted),
            5e-3,
            lambda: add_product(kept, gradient.T, x),
            8 * total.numel(),
        )
        plain = timed(lambda: gradient.T @ x)
        print(f"      the product alone: {plain:.3f} ms", flush=True)


def sums() -> None:
    with said("gradients of two ranks added up"):
        rows = drawn(2, 2 * CHANNELS * WIDTH)
        reducing.add_up(rows, total := torch.empty(rows.shape[1], device=DEVICE))
        error = apart(total, rows.sum(0, dtype=torch.float32))
        line(
            "gradients of two ranks added up",
            error,
            0.0,
            lambda: reducing.add_up(rows, total),
            8 * len(total),
        )


def thin_products() -> None:
    for tokens, into, out, rank, turned in (
        (TOKENS // 2, WIDTH, 2 * CHANNELS, 32, False),
        (TOKENS // 2, WIDTH, WIDTH, 16, False),
        (TOKENS // 2, WIDTH, CHANNELS, 16, True),
        (*ODD, 48, 8, True),
        (*ODD, 80, 48, False),
    ):
        name = f"with an adapter ({tokens}, {into}) to {out}, rank {rank}{', turned' * turned}"
        with said(name):
            xa, x, w = drawn(tokens, rank), drawn(tokens, into, seed=1), drawn(out, into, seed=2)
            b = drawn(rank, out, seed=3).t() if turned else drawn(out, rank, seed=3)
            of_adapter = xa.float() @ b.float().t()
            product = partial(adapted._product, x, w, xa, b)
            moved = 2 * (x.numel() + w.numel() + tokens * out)
            line(name, apart(product(), of_adapter + x.float() @ w.float().t()), 5e-3, product, moved)
            alone, thin = timed(partial(torch.mm, x, w.t())), timed(partial(adapted.thin_product, xa, b))
            print(f"      the product alone: {alone:.3f} ms, the adapter's: {thin:.3f} ms", flush=True)
            (x8, x_scale), (w8, w_scale) = fp8.quantized(x, E4M3), fp8.quantized(w, E4M3)
            if tokens % 16 or into % 16 or out % 16:
                continue
            factors = (x8, w8, x_scale, w_scale)
            product = partial(fp8._adapted_product, *factors, xa, b, True)
            wanted = of_adapter + (x8.float() @ w8.float().t()) * (x_scale * w_scale)
            line(f"{name}, float8", apart(product(), wanted), 1e-2, product, moved)
            alone = timed(partial(fp8._product, *factors, HALF, True))
            print(f"      the product alone: {alone:.3f} ms", flush=True)


def adam() -> None:
    shape = (2 * CHANNELS, WIDTH)
    p, g, m, v = (drawn(*shape, seed=i, dtype=torch.float32) for i in range(4))
    v = v.abs()
    step = torch.ones((), device=DEVICE)
    how = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
    divisor, skip = torch.full((), 2.0, device=DEVICE), torch.zeros((), device=DEVICE)
    rest = {"amsgrad": False, "maximize": False, "grad_scale": divisor, "found_inf": skip}

    def torchs(*tensors: Tensor) -> None:
        torch._fused_adamw_(*([t] for t in tensors), [], [step], lr=1e-3, **how, **rest)  # type: ignore[arg-type]

    rate = torch.tensor(1e-3)

    def ours(*tensors: Tensor) -> None:
        optimizer.adamw(*tensors, step, lr=rate, divisor=divisor, skip=skip, **how)  # type: ignore[arg-type]

    with said("adamw"):
        one, other = ([t.clone() for t in (p, g, m, v)] for _ in "ab")
        torchs(*one)
        ours(*other)
        # torch's writes the divided gradient, too
        error = max(apart(one[i], other[i]) for i in (0, 2, 3))
        line("adamw, torch's", 0.0, 0.0, lambda: torchs(*one), 32 * p.numel())
        line("adamw, compiled", error, 1e-5, lambda: ours(*other), 28 * p.numel())


def main() -> int:
    gates()
    joined_gates()
    norms()
    rotations()
    additions()
    float8_sums()
    casts()
    rows()
    products()
    losses()
    sums()
    thin_products()
    adam()
    if "--tune" in sys.argv:
        tune()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
