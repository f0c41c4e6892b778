"""Linear products in float8: x @ weight.T and both of its gradients through `torch._scaled_mm`.

Each operand is divided by a scale, so that its largest number is the largest that float8 can tell, and the
product is multiplied by both scales: one scale for a whole tensor (or this tensor-parallel rank's part of
it), found anew at each use. What goes in and comes out is bfloat16, and weights stay what they are.

Inputs and weights are e4m3 (3 bits of mantissa, 2^-9 to 448). Gradients are e5m2 (2 bits, 2^-16 to 57,344):
they spread over more powers of two than one scale could lift into e4m3, and what falls below is lost.

It is written in plain operators, so that torch.compile can join scaling and casting to what is around them;
not compiled, each of them goes through memory by itself, which costs more than float8 gains.

Shapes: T (rows), D (input), O (output) and R (rank of an adapter).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nemorun.errors import ConfigError
from nemorun.training import cublas
from nemorun.training.adapted import Adapter, thin_product
from nemorun.training.compiling import HAS_TRITON, fused
from nemorun.training.gating import gate, gate_backward
from nemorun.training.model import TrainableModel
from nemorun.training.products import add
from nemorun.training.tensor_parallel import local

E4M3 = torch.float8_e4m3fn
E5M2 = torch.float8_e5m2
_STEP = 16
"""A GPU multiplies matrices whose sides are multiples of this."""


def scaled_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    adapter: Adapter | None = None,
    largest: Tensor | None = None,
    total: Tensor | None = None,
) -> Tensor:
    """x [..., D] @ weight [O, D].T, and what an adapter adds (not in float8).

    `scale`: of a weight that is in e4m3 already, and then has no gradient. `largest`: magnitudes whose
    greatest is the greatest in x, where they are known. `total` [O, D] (float32): what the weight's gradient
    is added to, instead of being given.
    """
    y: Tensor = _ScaledLinear.apply(x.flatten(0, -2), weight, scale, largest, total, None, *_tensors(adapter))
    return y.view(*x.shape[:-1], -1)


def scaled_gated(
    x: Tensor,
    weight: Tensor,
    block: int,
    scale: Tensor | None = None,
    adapter: Adapter | None = None,
    total: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """silu(gate) x up of the product, which stand in turns of `block`: [..., O / 2]; and its `largest`.

    In one, so that the product's gradients know the largest of the gate's without reading it again.
    """
    inner, largest = _ScaledLinear.apply(
        x.flatten(0, -2), weight, scale, None, total, block, *_tensors(adapter)
    )
    return inner.view(*x.shape[:-1], -1), largest


def _tensors(adapter: Adapter | None) -> tuple[Tensor | None, ...]:
    return (None, None, None) if adapter is None else adapter.of_rows()


def require_float8(device: torch.device) -> None:
    """Raises ConfigError on a GPU without float8. A CPU works it out, slowly, so that it can be tried."""
    if device.type != "cuda":
        return
    major, minor = torch.cuda.get_device_capability(device)
    if torch.version.cuda is None or (major, minor) < (8, 9):
        raise ConfigError(
            "trainer.precision=fp8-mixed needs an NVIDIA GPU of compute capability 8.9 or more (Ada, Hopper, "
            f"Blackwell); {torch.cuda.get_device_name(device)} has {major}.{minor}. Set "
            "trainer.precision=bf16-mixed"
        )


def choose_matrices(model: nn.Module) -> list[str]:
    """Have the matrices that can be (modules with `float8`) multiplied in float8; the names of the others,
    whose sides on this rank do not fit."""
    unfit = []
    module: Any
    for name, module in model.named_modules():
        if hasattr(module, "float8"):
            module.float8 = not any(side % _STEP for side in local(module.weight).shape)
            if not module.float8:
                unfit.append(name)
    return unfit


def _matrices(model: nn.Module, trained: bool) -> Iterator[Any]:
    """Modules that multiply in float8, and whose weight is trained or frozen."""
    for module in model.modules():
        if getattr(module, "float8", False) and module.weight.requires_grad is trained:
            yield module


@torch.no_grad()
def quantize_frozen(model: nn.Module) -> None:
    """Quantize once what is not trained, instead of at each use; to be called when the weights are there.

    The weights stay as well, for exports and for batches that do not fit: a byte more for each of them.
    """
    for module in _matrices(model, trained=False):
        module.float8_weight, module.float8_scale = quantized(local(module.weight), E4M3)


class QuantizedOnceAStep:
    """Trained weights in float8, made when a step's first micro-batch comes to them and used by all of it.

    For weights that stay gathered, and whose gradients are added to `total`: a byte more for each of them.
    """

    def __init__(self, model: TrainableModel) -> None:
        self._blocks = list(model.blocks.values())
        for block in self._blocks:
            for module in _matrices(block, trained=True):
                device = local(module.weight).device
                module.float8_weight = torch.empty(module.weight.shape, dtype=E4M3, device=device)
                module.float8_scale = torch.empty((), device=device)
            block.register_forward_pre_hook(self._renew)  # after FSDP's, which gathers
        self.expire()

    def expire(self) -> None:
        """To be called when the weights have changed."""
        self._expired = set(self._blocks)

    @torch.no_grad()
    def _renew(self, block: nn.Module, _: object) -> None:
        if block not in self._expired:
            return
        self._expired.remove(block)
        for module in _matrices(block, trained=True):
            _quantize_into(local(module.weight), module.float8_weight, module.float8_scale)


@fused()
def _quantize_into(weight: Tensor, quantized_weight: Tensor, its_scale: Tensor) -> None:
    values, scale = quantized(weight, E4M3)
    quantized_weight.copy_(values)
    its_scale.copy_(scale)


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether all sides of the three products are what a GPU multiplies."""
    rows = x.numel() // max(1, x.shape[-1])
    return rows > 0 and not any(side % _STEP for side in (rows, *weight.shape))


def quantized(x: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """x in float8, and the float32 scalar that it is to be multiplied with."""
    scale = _scale(x.abs(), kind)
    return _cast(x, scale, kind), scale


def _scale(magnitudes: Tensor, kind: torch.dtype) -> Tensor:
    return magnitudes.amax().float().clamp(min=1e-12) / torch.finfo(kind).max


def _cast(x: Tensor, scale: Tensor, kind: torch.dtype) -> Tensor:
    most = torch.finfo(kind).max  # rounding could pass it, and what is beyond becomes NaN
    return (x.float() * (1 / scale)).clamp(-most, most).to(kind)


class _ScaledLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        scale: Tensor | None,
        largest: Tensor | None,
        total: Tensor | None,
        block: int | None,
        a: Tensor | None,
        b: Tensor | None,
        dropped: Tensor | None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        x_scale = _scale(x.abs() if largest is None else largest, E4M3)
        ctx.trains = total is not None or ctx.needs_input_grad[1]
        if ctx.trains:
            x8, kept_x = _cast_both(x, x_scale, E4M3)
        else:
            x8, kept_x = _cast(x, x_scale, E4M3), None
        w8, w_scale = (weight, scale) if scale is not None else quantized(weight, E4M3)
        seen = xa = None
        if a is None or b is None:
            y = _product(x8, w8, x_scale, w_scale, x.dtype, quick=True)
        else:
            seen = x if dropped is None else dropped
            xa = seen @ a.t()
            y = _adapted_product(x8, w8, x_scale, w_scale, xa, b, quick=True)
        ctx.dtype, ctx.drops, ctx.block = x.dtype, dropped is not None, block
        # The weight is kept as it was given and cast again: where ranks share weights, it is freed until the
        # backward pass, and float8 copies of all layers would not be.
        before_gate = None if block is None else y
        ctx.save_for_backward(kept_x, x_scale, weight, w_scale, seen, xa, a, b, before_gate, total)
        return y if block is None else gate(y, block)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        turned_x, x_scale, weight, w_scale, seen, xa, a, b, before_gate, total = ctx.saved_tensors
        wants_x = ctx.needs_input_grad[0]
        if ctx.block is None:
            g_scale = _scale(grad.abs(), E5M2)
        else:
            grad, largest = gate_backward(before_gate, grad, ctx.block)
            g_scale = _scale(largest, E5M2)
        grad_x = grad_weight = grad_a = grad_b = grad_xa = None
        if ctx.trains:
            g8, turned_g = _cast_both(grad, g_scale, E5M2)
            if total is None:
                grad_weight = _product(turned_g, turned_x, g_scale, x_scale, weight.dtype)
            else:
                _add_product(total, turned_g, turned_x, g_scale, x_scale, ctx.dtype)
        else:
            g8 = _cast(grad, g_scale, E5M2)
        if xa is not None:
            grad_xa = grad @ b
            grad_a, grad_b = grad_xa.t() @ seen, grad.t() @ xa
        if wants_x:
            # Nothing is added but the order: a cast that waits for the gradient cannot be moved into the
            # forward pass by a compiler, which would keep its output until here.
            turned_w = _turned(weight, w_scale + 0 * g_scale)
            if grad_xa is None or ctx.drops:
                grad_x = _product(g8, turned_w, g_scale, w_scale, ctx.dtype)
            else:
                grad_x = _adapted_product(g8, turned_w, g_scale, w_scale, grad_xa, a.t(), quick=False)
        grad_dropped = grad_xa @ a if grad_xa is not None and ctx.drops else None
        return grad_x, grad_weight, None, None, None, None, grad_a, grad_b, grad_dropped


def _product(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, dtype: torch.dtype, quick: bool = False
) -> Tensor:
    """a [M, K] @ b [N, K].T x both scales. `quick` adds up in fewer bits: enough forward, not for gradients.

    A GPU wants the rows of both to lie whole. On the CPU, which float8 makes no faster, the same numbers are
    multiplied in float32.
    """
    if not _on_a_gpu(a):
        return ((a.float() @ b.float().t()) * (a_scale * b_scale)).to(dtype)
    return torch._scaled_mm(a, b.t(), scale_a=a_scale, scale_b=b_scale, out_dtype=dtype, use_fast_accum=quick)


@torch.library.custom_op("nemorun::add_scaled_product", mutates_args=("total",))
def _add_product(
    total: Tensor, a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, dtype: torch.dtype
) -> None:
    """total (float32) += the product; where that takes two passes, it is of this type in between."""
    if total.is_cuda and cublas.library():
        cublas.add_float8_product(total, a, b, a_scale, b_scale)
    else:
        add(total, _product(a, b, a_scale, b_scale, dtype))


@_add_product.register_fake
def _(total: Tensor, a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, dtype: torch.dtype) -> None: ...


def _cast_both(x: Tensor, scale: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """x [M, N] / scale in float8, as it lies and turned [N, M]."""
    if _on_a_gpu(x):
        return _whole_and_turned(x, scale, kind)
    # Left as it lies: torch 2.13's compiler gives wrong numbers where it turns float8 on the CPU.
    whole = _cast(x, scale, kind)
    return whole, whole.t()


def _turned(weight: Tensor, scale: Tensor) -> Tensor:
    """The weight [O, D] in e4m3, turned [D, O]; one that is in e4m3 has been divided by its scale."""
    if _on_a_gpu(weight):
        return _only_turned(weight, scale)
    return weight.t() if weight.dtype == E4M3 else _cast(weight, scale, E4M3).t()


@torch.library.custom_op("nemorun::cast_whole_and_turned", mutates_args=())
def _whole_and_turned(x: Tensor, scale: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """In one pass over memory; torch.compile makes two of it, or a slow one."""
    if not (x.is_cuda and HAS_TRITON):
        whole = _cast(x, scale, kind)
        return whole, whole.t().contiguous()
    from nemorun.training import kernels

    return kernels.cast_whole_and_turned(x.contiguous(), scale, kind)


@_whole_and_turned.register_fake
def _(x: Tensor, scale: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=kind), x.new_empty(x.shape[::-1], dtype=kind)


@torch.library.custom_op("nemorun::cast_turned", mutates_args=())
def _only_turned(x: Tensor, scale: Tensor) -> Tensor:
    if x.dtype == E4M3:
        scale = torch.ones_like(scale)
    if not (x.is_cuda and HAS_TRITON):
        return _cast(x, scale, E4M3).t().contiguous()
    from nemorun.training import kernels

    return kernels.cast_turned(x.contiguous(), scale, E4M3)


@_only_turned.register_fake
def _(x: Tensor, scale: Tensor) -> Tensor:
    return x.new_empty(x.shape[::-1], dtype=E4M3)


def _on_a_gpu(x: Tensor) -> bool:
    return x.is_cuda


@torch.library.custom_op("nemorun::scaled_adapted_product", mutates_args=())
def _adapted_product(
    x8: Tensor, w8: Tensor, x_scale: Tensor, w_scale: Tensor, xa: Tensor, b: Tensor, quick: bool
) -> Tensor:
    """As in `nemorun.training.adapted`, the product is added to the adapter's."""
    if x8.is_cuda and cublas.library():
        y = thin_product(xa, b)
        cublas.add_float8_product(y, x8, w8, x_scale, w_scale, quick)
        return y
    return _product(x8, w8, x_scale, w_scale, xa.dtype, quick).addmm_(xa, b.t())


@_adapted_product.register_fake
def _(x8: Tensor, w8: Tensor, x_scale: Tensor, w_scale: Tensor, xa: Tensor, b: Tensor, quick: bool) -> Tensor:
    return xa.new_empty(x8.shape[0], w8.shape[0])
