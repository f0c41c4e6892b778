"""Causal attention over whole sequences: which kernel, and how it is called.

Shapes: B rows, S tokens, H query heads, G key/value heads (H a multiple of G), K head width.

| device | a row is one document                                | several documents                        |
|--------|------------------------------------------------------|------------------------------------------|
| CPU    | `products` to 512 tokens, then `sdpa`                | the same, masked                         |
| CUDA   | `sdpa`: cuDNN, else FlashAttention 2, else efficient | `varlen` (FlashAttention 2) in 16 bits   |
|        | attention, else products                             | on Ampere and later; else `sdpa`, masked |
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends import cuda as cuda_backends
from torch.nn.attention import SDPBackend, sdpa_kernel

from nemorun.training.attention.documents import Documents, has_flash

#: cuDNN is 1.77 times as fast as FlashAttention 2 on an H200 (forward and backward, 8,192 tokens, bf16).
FASTEST_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]

_aten = torch.ops.aten

#: What selective recomputation should keep: the operators that do attention's products.
ATTENTION_OPERATORS = (
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._flash_attention_forward.default,
)


def attend(query: Tensor, key: Tensor, value: Tensor, documents: Documents | None = None) -> Tensor:
    """Causal, never across documents: query [B, S, H, K], key and value [B, S, G, K] -> [B, S, H, K]."""
    kernels = {"products": _products, "varlen": _varlen, "sdpa": _sdpa}
    choice = _choice(query, documents is not None and documents.flash)
    return kernels[choice](query, key, value, documents)


def kernel_name(query: Tensor, packed: bool) -> str:
    """For the log: which kernel attends to queries like `query` [B, S, H, K]. Not for a compiled region."""
    choice = _choice(query, packed and has_flash(query.device))
    if choice == "varlen":
        return "FlashAttention 2, variable length"
    if choice == "products" or query.device.type == "cpu":
        return {"products": "matrix products", "sdpa": "torch's kernel for the CPU"}[choice]
    if packed:
        return "torch's attention with a mask"
    probe = torch.empty(
        1, 1, 128, query.shape[-1], device=query.device, dtype=query.dtype, requires_grad=True
    )
    settings = cuda_backends.SDPAParams(probe, probe, probe, None, 0.0, True, False)
    able = {
        "cuDNN": cuda_backends.can_use_cudnn_attention,
        "FlashAttention 2": cuda_backends.can_use_flash_attention,
        "memory-efficient attention": cuda_backends.can_use_efficient_attention,
    }
    return next((name for name, usable in able.items() if usable(settings)), "matrix products")


def suits_flash(query: Tensor) -> bool:
    """Can FlashAttention be called for queries like `query` as they are, if the device has it?"""
    width = query.shape[-1]
    return query.dtype in (torch.bfloat16, torch.float16) and width % 8 == 0 and width <= 256


def _choice(query: Tensor, varlen: bool) -> str:
    if varlen and suits_flash(query):
        return "varlen"
    return "products" if query.device.type == "cpu" and query.shape[1] <= 512 else "sdpa"


def _sdpa(query: Tensor, key: Tensor, value: Tensor, documents: Documents | None) -> Tensor:
    with sdpa_kernel(FASTEST_FIRST, set_priority=True):
        mixed = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=documents.mask()[:, None] if documents else None,
            is_causal=documents is None,
            enable_gqa=query.shape[2] != key.shape[2],
        )
    return mixed.transpose(1, 2)


def _varlen(query: Tensor, key: Tensor, value: Tensor, documents: Documents | None) -> Tensor:
    """By torch's operator itself: the signature of `torch.nn.attention.varlen` is new in each release."""
    assert documents is not None
    borders, longest = documents.borders, documents.longest
    mixed = _aten._flash_attention_forward(
        query.flatten(0, 1),
        key.flatten(0, 1),
        value.flatten(0, 1),
        borders,
        borders,
        longest,
        longest,
        0.0,  # dropout
        True,  # causal
        False,  # no debug mask
    )[0]
    return mixed.view(query.shape)


def _products(query: Tensor, key: Tensor, value: Tensor, documents: Documents | None) -> Tensor:
    """As two matrix products, [S, S] scores whole: for short sequences on the CPU.

    torch's own kernel takes 2 to 3 times as long there in bfloat16. The query heads that share a key are
    stacked, so that no key or value is repeated.
    """
    batch, length, heads, width = query.shape
    groups = key.shape[2]
    stacked = query.unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4).reshape(batch * groups, -1, width)
    key, value = (x.transpose(1, 2).reshape(batch * groups, length, width) for x in (key, value))
    scores = (stacked * width**-0.5) @ key.transpose(1, 2)
    hidden = torch.full((length, length), -math.inf, dtype=scores.dtype, device=scores.device).triu(1)
    if documents is not None:
        hidden = hidden.new_zeros(()).where(documents.mask(), -math.inf)[:, None]
    shares = (scores.view(batch, heads, length, length) + hidden).softmax(-1).view(batch * groups, -1, length)
    return (shares @ value).view(batch, heads, length, width).transpose(1, 2)
