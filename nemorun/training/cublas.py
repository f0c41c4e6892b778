"""cuBLASLt called directly, for what torch's own products do worse.

- Products that are added to what is there: torch goes over memory twice. It copies a matrix that is kept, to
  add to; and in float8 it writes the product, which a kernel then reads and adds.
- Wide products, into half as many columns again as are summed over, or more: on Hopper, cuBLASLt's own choice
  takes 2 to 5 % more power and time than another of its kernels.

Types, attributes and the layout of results are those of cublasLt.h in CUDA 12 and 13. cuBLAS has columns lie
whole, so what is a matrix [M, N] here is one of N rows there.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

_FLOAT32, _COMPUTE_FLOAT32, _TRANSPOSED = 0, 68, 1
_TYPES = {torch.float32: 0, torch.bfloat16: 14, torch.float8_e4m3fn: 28, torch.float8_e5m2: 29}
"""cudaDataType"""
_TRANSPOSE_A, _SCALE_OF_A, _SCALE_OF_B, _QUICK = 3, 17, 18, 25
"""cublasLtMatmulDescAttributes_t"""
_MOST_WORKSPACE = 1
"""cublasLtMatmulPreferenceAttributes_t"""
_WORKSPACE = 32 * 2**20
"""Bytes: what NVIDIA advises for Hopper."""
_ALIGNMENT = 256
"""Bytes: what a matrix is taken to lie at, if nothing else is said."""
_CHOICES = 8
"""Ways to make a product that cuBLASLt is asked for: it gives no more."""
_TILE, _CLUSTER = 1, 8
"""cublasLtMatmulAlgoConfigAttributes_t"""
_BEST_IF_WIDE = (201, 5)
"""The tile of 176 x 128 and the cluster of 1 x 2 (cublasLtMatmulTile_t, cublasLtClusterShape_t)."""
_MANY_ROWS = 4096
"""What that has been measured with, at least."""


class _Found(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t"""

    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


class _Plan(NamedTuple):
    """How products of certain shapes and types are made."""

    description: ctypes.c_void_p
    a: ctypes.c_void_p
    b: ctypes.c_void_p
    total: ctypes.c_void_p
    found: _Found


@functools.cache
def library() -> Any:
    """cuBLASLt, which torch has loaded, or None: not on CUDA."""
    if not torch.version.cuda:
        return None
    try:
        return ctypes.CDLL(f"libcublasLt.so.{torch.version.cuda.split('.')[0]}")
    except OSError:
        return None


def add_float8_product(
    total: Tensor, a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, quick: bool = False
) -> None:
    """total [M, N] += a [M, K] @ b [N, K].T x both scales; a and b in float8, all whole in memory.

    `total` is in float32 or bfloat16. `quick` adds up in fewer bits (`use_fast_accum` of `torch._scaled_mm`).
    Raises RuntimeError where cuBLASLt cannot.
    """
    plan = _plan_of(total, a, b, quick)
    for attribute, scale in ((_SCALE_OF_A, b_scale), (_SCALE_OF_B, a_scale)):
        _set("cublasLtMatmulDescSetAttribute", plan.description, attribute, ctypes.c_void_p(scale.data_ptr()))
    _multiply(plan, a, b, total, total)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total [M, N] += a [M, K] @ b [N, K].T, of one type, all whole in memory.

    Raises RuntimeError where cuBLASLt cannot.
    """
    _multiply(_plan_of(total, a, b), a, b, total, total)


def product(a: Tensor, b: Tensor, more: Tensor | None = None) -> Tensor:
    """a [..., K] @ b [N, K].T + more [..., N], if there is any; of one type, all whole in memory.

    Raises RuntimeError where cuBLASLt cannot.
    """
    result = a.new_empty(*a.shape[:-1], len(b))
    _multiply(_plan_of(result, a, b), a, b, more, result)
    return result


def can_multiply(*operands: Tensor) -> bool:
    """Whether `product` and `add_product` may be asked: in bfloat16, all lying as kernels like to read."""
    return library() is not None and all(
        one.is_cuda
        and one.dtype == torch.bfloat16
        and one.is_contiguous()
        and one.numel() > 0
        and one.shape[-1] % 8 == 0
        and one.data_ptr() % _ALIGNMENT == 0
        for one in operands
    )


def is_wide(columns: int, summed: int) -> bool:
    """Whether another choice than cuBLASLt's is better for a product [M, summed] @ [columns, summed].T."""
    return 2 * columns >= 3 * summed


def _multiply(plan: _Plan, a: Tensor, b: Tensor, more: Tensor | None, result: Tensor) -> None:
    share = ctypes.c_float(more is not None)
    more = result if more is None else more
    assert all(one.is_contiguous() for one in (a, b, more, result))
    one = ctypes.c_float(1)
    _call(
        "cublasLtMatmul",
        _handle(result.device),
        plan.description,
        ctypes.byref(one),
        *(ctypes.c_void_p(b.data_ptr()), plan.a, ctypes.c_void_p(a.data_ptr()), plan.b),
        ctypes.byref(share),
        *(ctypes.c_void_p(more.data_ptr()), plan.total, ctypes.c_void_p(result.data_ptr()), plan.total),
        ctypes.byref(plan.found.algorithm),
        ctypes.c_void_p(_workspace(result.device).data_ptr()),
        ctypes.c_size_t(_WORKSPACE),
        ctypes.c_void_p(torch.cuda.current_stream(result.device).cuda_stream),
    )


def _plan_of(result: Tensor, a: Tensor, b: Tensor, quick: bool = False) -> _Plan:
    n, k = b.shape
    return _plan(result.numel() // n, n, k, a.dtype, b.dtype, result.dtype, quick, result.device)


@functools.cache
def _plan(
    m: int,
    n: int,
    k: int,
    of_a: torch.dtype,
    of_b: torch.dtype,
    of_total: torch.dtype,
    quick: bool,
    device: torch.device,
) -> _Plan:
    description, preference = ctypes.c_void_p(), ctypes.c_void_p()
    _call("cublasLtMatmulDescCreate", ctypes.byref(description), _COMPUTE_FLOAT32, _FLOAT32)
    _set("cublasLtMatmulDescSetAttribute", description, _TRANSPOSE_A, ctypes.c_int32(_TRANSPOSED))
    if quick:
        _set("cublasLtMatmulDescSetAttribute", description, _QUICK, ctypes.c_int8(1))
    a, b, total = _layout(of_b, k, n), _layout(of_a, k, m), _layout(of_total, n, m)
    _call("cublasLtMatmulPreferenceCreate", ctypes.byref(preference))
    _set("cublasLtMatmulPreferenceSetAttribute", preference, _MOST_WORKSPACE, ctypes.c_size_t(_WORKSPACE))
    found, count = (_Found * _CHOICES)(), ctypes.c_int()
    layouts = (description, a, b, total, total, preference)
    results = (ctypes.c_int(_CHOICES), found, ctypes.byref(count))
    _call("cublasLtMatmulAlgoGetHeuristic", _handle(device), *layouts, *results)
    _call("cublasLtMatmulPreferenceDestroy", preference)
    choices = [one for one in found[: count.value] if not one.state]
    if not choices:
        raise RuntimeError(
            f"cuBLASLt has no way to make a product of {m} x {k} and {n} x {k} numbers in {of_a}"
        )
    better = []
    if is_wide(n, k) and m >= _MANY_ROWS and of_b == torch.bfloat16 and _is_hopper(device):
        better = [one for one in choices if _tile_and_cluster(one) == _BEST_IF_WIDE]
    return _Plan(description, a, b, total, [*better, *choices][0])


def _is_hopper(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) == (9, 0)


def _tile_and_cluster(found: _Found) -> tuple[int, int]:
    tile, cluster, written = ctypes.c_uint32(), ctypes.c_uint16(), ctypes.c_size_t()
    for attribute, value in ((_TILE, tile), (_CLUSTER, cluster)):
        into = (ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value)), ctypes.byref(written))
        _call("cublasLtMatmulAlgoConfigGetAttribute", ctypes.byref(found.algorithm), attribute, *into)
    return tile.value, cluster.value


def _layout(dtype: torch.dtype, rows: int, columns: int) -> ctypes.c_void_p:
    layout = ctypes.c_void_p()
    sizes = (ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(rows))
    _call("cublasLtMatrixLayoutCreate", ctypes.byref(layout), _TYPES[dtype], *sizes)
    return layout


@functools.cache
def _handle(device: torch.device) -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    with torch.cuda.device(device):
        _call("cublasLtCreate", ctypes.byref(handle))
    return handle


@functools.cache
def _workspace(device: torch.device) -> Tensor:
    return torch.empty(_WORKSPACE, dtype=torch.uint8, device=device)


def _set(function: str, of: ctypes.c_void_p, attribute: int, value: Any) -> None:
    size = ctypes.c_size_t(ctypes.sizeof(value))
    _call(function, of, ctypes.c_int(attribute), ctypes.byref(value), size)


def _call(function: str, *arguments: Any) -> None:
    if status := getattr(library(), function)(*arguments):
        raise RuntimeError(f"{function} failed with status {status}")
