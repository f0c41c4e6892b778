"""cuBLASLt called directly, for products that are added to what is there, where torch goes over memory twice.

To a matrix that is kept: torch makes a copy of it first, to add to. In float8: torch writes the product,
which a kernel then reads and adds. Types, attributes and the layout of results are those of cublasLt.h in
CUDA 12 and 13. cuBLAS has columns lie whole, so what is a matrix [M, N] here is one of N rows there.
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
    plan = _plan(*total.shape, a.shape[1], a.dtype, b.dtype, total.dtype, quick, total.device)
    for attribute, scale in ((_SCALE_OF_A, b_scale), (_SCALE_OF_B, a_scale)):
        _set("cublasLtMatmulDescSetAttribute", plan.description, attribute, ctypes.c_void_p(scale.data_ptr()))
    _multiply(plan, a, b, total, total)


def added_product(more: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """more [..., N] + a [..., K] @ b [N, K].T, of one type, all whole in memory.

    Raises RuntimeError where cuBLASLt cannot.
    """
    result = torch.empty_like(more)
    n, k = b.shape
    plan = _plan(more.numel() // n, n, k, a.dtype, b.dtype, more.dtype, False, more.device)
    _multiply(plan, a, b, more, result)
    return result


def can_add(more: Tensor, a: Tensor, b: Tensor) -> bool:
    """Whether `added_product` may be asked: in bfloat16, all lying as its kernels like to read it."""
    return library() is not None and all(
        one.is_cuda
        and one.dtype == torch.bfloat16
        and one.is_contiguous()
        and one.numel() > 0
        and one.shape[-1] % 8 == 0
        and one.data_ptr() % _ALIGNMENT == 0
        for one in (more, a, b)
    )


def _multiply(plan: _Plan, a: Tensor, b: Tensor, more: Tensor, result: Tensor) -> None:
    assert all(one.is_contiguous() for one in (a, b, more, result))
    one = ctypes.c_float(1)
    _call(
        "cublasLtMatmul",
        _handle(result.device),
        plan.description,
        ctypes.byref(one),
        *(ctypes.c_void_p(b.data_ptr()), plan.a, ctypes.c_void_p(a.data_ptr()), plan.b),
        ctypes.byref(one),
        *(ctypes.c_void_p(more.data_ptr()), plan.total, ctypes.c_void_p(result.data_ptr()), plan.total),
        ctypes.byref(plan.found.algorithm),
        ctypes.c_void_p(_workspace(result.device).data_ptr()),
        ctypes.c_size_t(_WORKSPACE),
        ctypes.c_void_p(torch.cuda.current_stream(result.device).cuda_stream),
    )


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
    found, count = _Found(), ctypes.c_int()
    layouts = (description, a, b, total, total, preference)
    results = (ctypes.c_int(1), ctypes.byref(found), ctypes.byref(count))
    _call("cublasLtMatmulAlgoGetHeuristic", _handle(device), *layouts, *results)
    _call("cublasLtMatmulPreferenceDestroy", preference)
    if count.value == 0 or found.state:
        raise RuntimeError(
            f"cuBLASLt has no way to add a product of {m} x {k} and {n} x {k} numbers in {of_a}"
        )
    return _Plan(description, a, b, total, found)


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
