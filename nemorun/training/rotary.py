"""Rotary position embeddings: channel pairs of queries and keys turned by their position's angles.

In training one operator cuts queries, keys and values from their common product and turns them, and one puts
their gradients together again: each goes through memory once, where torch.compile makes several kernels. What
attention reads is kept for the backward pass, and so the product itself need not be.

Shapes: B (sequences), S (tokens), H (query heads), G (key/value heads), Q = H / G and K (head width).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nemorun.training.compiling import HAS_TRITON


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the channel pairs (k, k + width / 2) of `x` [B, S, heads, K] by its position's angles, in float32.

    Channels beyond the angles' width stay. cos and sin: [S, width / 2] or [B, S, width / 2].
    """
    width = 2 * cos.shape[-1]
    low, high = x[..., :width].float().chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    turned = torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x.dtype)
    return turned if width == x.shape[-1] else torch.cat((turned, x[..., width:]), dim=-1)


def split_rotated(qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """qkv [B, S, G, Q + 2, K], of each key/value head its queries, key and value -> query [B, S, H, K], key
    and value [B, S, G, K], the former two rotated."""
    if qkv.requires_grad:
        query, key, value = _SplitRotated.apply(qkv, cos, sin)
        return query, key, value
    return _plain(qkv, cos, sin)


def _plain(qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `split_rotated`; the value is a part of qkv."""
    query, key = rotate(qkv[..., :-2, :].flatten(2, 3), cos, sin), rotate(qkv[..., -2, :], cos, sin)
    return query, key, qkv[..., -1, :]


class _SplitRotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        query, key, value = _split(qkv, cos, sin)
        return query, key, value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        query, key, value = grads
        return _join(query, key, value, *ctx.saved_tensors), None, None


def _in_one_pass(x: Tensor, cos: Tensor) -> bool:
    width = x.shape[-1]
    whole = 2 * cos.shape[-1] == width and width & (width - 1) == 0
    return x.is_cuda and HAS_TRITON and whole


@torch.library.custom_op("nemorun::split_rotated", mutates_args=())
def _split(qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if not _in_one_pass(qkv, cos):
        query, key, value = _plain(qkv, cos, sin)
        return query, key, value.contiguous()
    from nemorun.training import kernels

    query, key, value = _parts_like(qkv)
    kernels.split_rotated(qkv.contiguous(), query, key, value, cos.contiguous(), sin.contiguous())
    return query, key, value


@_split.register_fake
def _(qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _parts_like(qkv)


def _parts_like(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, length, keys, parts, width = qkv.shape
    heads = (keys * (parts - 2), keys, keys)
    query, key, value = (qkv.new_empty(rows, length, count, width) for count in heads)
    return query, key, value


@torch.library.custom_op("nemorun::join_rotated", mutates_args=())
def _join(query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The gradient of qkv, from those of what `_split` gives."""
    if not _in_one_pass(query, cos):
        queries = rotate(query, cos, -sin).unflatten(2, (key.shape[2], -1))
        return torch.cat((queries, rotate(key, cos, -sin)[..., None, :], value[..., None, :]), dim=-2)
    from nemorun.training import kernels

    qkv = _whole_like(query, key)
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    kernels.join_rotated(qkv, query, key, value, cos.contiguous(), sin.contiguous())
    return qkv


@_join.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return _whole_like(query, key)


def _whole_like(query: Tensor, key: Tensor) -> Tensor:
    rows, length, keys, width = key.shape
    return query.new_empty(rows, length, keys, query.shape[2] // keys + 2, width)
