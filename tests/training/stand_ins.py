"""CUDA's attention operators for the CPU, in plain products: their schemas and the shapes they answer with.

What a test learns by them is that the operators are called and traced rightly; not that a GPU agrees.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nemorun.training.attention.blocks import Products


@contextlib.contextmanager
def operators_on_the_cpu(lse_dims: int = 3) -> Iterator[None]:
    library = torch.library.Library("aten", "IMPL")
    exact = Products()

    def flash_forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        borders: Tensor | None,
        borders_of_keys: Tensor | None,
        longest: int,
        longest_key: int,
        dropout: float,
        causal: bool,
        debug: bool,
        **_: Any,
    ) -> tuple[Tensor, ...]:
        state = torch.zeros(2, dtype=torch.uint64), torch.zeros((), dtype=torch.uint64), torch.empty(0)
        if borders is None:
            assert (longest, longest_key) == (query.shape[1], key.shape[1])
            out, lse = exact.forward(query, key, value, causal)
            return out, lse.transpose(1, 2).contiguous(), *state
        assert borders_of_keys is not None
        assert int(borders.diff().max()) <= longest
        assert borders.dtype == torch.int32
        out, lse = torch.empty_like(query), torch.empty(query.shape[1], query.shape[0])
        for first, end in torch.stack((borders[:-1], borders[1:]), 1).tolist():
            at = slice(first, end)
            part, part_lse = exact.forward(query[None, at], key[None, at], value[None, at], causal)
            out[at], lse[:, at] = part[0], part_lse[0].t()
        return out, lse, *state

    def flash_backward(
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        borders: Tensor | None,
        borders_of_keys: Tensor | None,
        longest: int,
        longest_key: int,
        dropout: float,
        causal: bool,
        seed: Tensor,
        offset: Tensor,
        **_: Any,
    ) -> tuple[Tensor, ...]:
        assert lse.is_contiguous()
        assert seed.dtype == torch.uint64
        if borders is None:
            assert lse.shape == (query.shape[0], query.shape[2], query.shape[1])
            return exact.backward(grad, query, key, value, out, lse.transpose(1, 2), causal)
        assert lse.shape == (query.shape[1], query.shape[0])
        grads = tuple(torch.empty_like(x) for x in (query, key, value))
        for first, end in torch.stack((borders[:-1], borders[1:]), 1).tolist():
            given = [x[None, first:end] for x in (grad, query, key, value, out)]
            for whole, part in zip(
                grads, exact.backward(*given, lse.t()[None, first:end], causal), strict=True
            ):
                whole[first:end] = part[0]
        return grads

    def cudnn_forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        with_lse: bool,
        dropout: float = 0.0,
        causal: bool = False,
        debug: bool = False,
        **_: Any,
    ) -> tuple[Any, ...]:
        assert bias is None
        assert with_lse
        out, lse = exact.forward(*(x.transpose(1, 2) for x in (query, key, value)), causal)
        lse = lse.transpose(1, 2).contiguous()
        state = torch.zeros((), dtype=torch.long)
        lengths = query.shape[2], key.shape[2]
        nothing = torch.empty(0)
        return (
            *(out.transpose(1, 2), lse if lse_dims == 3 else lse[..., None]),
            *(nothing, nothing, *lengths, state + 1, state + 2, nothing),
        )

    def cudnn_backward(
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        seed: Tensor,
        offset: Tensor,
        bias: Tensor | None,
        borders: Tensor | None,
        borders_of_keys: Tensor | None,
        length: int,
        length_of_keys: int,
        dropout: float,
        causal: bool,
        **_: Any,
    ) -> tuple[Tensor, ...]:
        assert (int(seed), int(offset), bias, borders) == (1, 2, None, None)
        assert (length, length_of_keys) == (query.shape[2], key.shape[2])
        assert lse.dim() == lse_dims
        assert lse.is_contiguous()
        grads = exact.backward(
            *(x.transpose(1, 2) for x in (grad, query, key, value, out)),
            lse.flatten(2).transpose(1, 2),
            causal,
        )
        return tuple(x.transpose(1, 2) for x in grads)

    library.impl("_flash_attention_forward", flash_forward, "CPU")
    library.impl("_flash_attention_backward", flash_backward, "CPU")
    library.impl("_scaled_dot_product_cudnn_attention", cudnn_forward, "CPU")
    library.impl("_scaled_dot_product_cudnn_attention_backward", cudnn_backward, "CPU")
    try:
        yield
    finally:
        library._destroy()
