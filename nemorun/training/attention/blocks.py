"""One block of attention and its backward pass, with the log-sum-exp that merges blocks.

Shapes here: query [B, Q, H, K], key and value [B, T, G, K], out like query, and `lse` [B, Q, H] in float32,
the natural logarithm of the sum of exponentials that a query's softmax divides by. In `backward`, `out` and
`lse` are those of the whole softmax, over all the keys that the queries see and not this block's alone: with
them a block's gradients are its part of the whole's (FlashAttention-2, arXiv:2307.08691, algorithm 2).

A kernel lives for one forward pass and its backward.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from nemorun.training.attention.documents import Documents, has_flash
from nemorun.training.attention.kernels import suits_flash

_aten = torch.ops.aten


class BlockKernel(Protocol):
    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, causal: bool, documents: Documents | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attention over these keys alone -> (out, lse). With documents it is causal, too, and Q = T."""
        ...

    def backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        causal: bool,
        documents: Documents | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """This block's part of the gradients of query, key and value, from that of the whole `out`."""
        ...


def block_kernel(query: Tensor, packed: bool) -> BlockKernel:
    """The fastest kernel for blocks of queries like `query`.

    cuDNN plans anew for each shape that it meets. So documents, whose blocks have any shape, go to
    FlashAttention; and so does deterministic mode, which cuDNN's backward pass does not offer.
    """
    if not (has_flash(query.device) and suits_flash(query)):
        return Products()
    hopper = torch.cuda.get_device_capability(query.device) >= (9, 0)
    settled = not packed and not torch.are_deterministic_algorithms_enabled()
    if hopper and settled and query.shape[-1] <= 128 and torch.backends.cuda.cudnn_sdp_enabled():
        return Cudnn()
    return Flash()


class Products:
    """As matrix products in float32, scores whole: on any device, and what the others are compared with."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, causal: bool, documents: Documents | None = None
    ) -> tuple[Tensor, Tensor]:
        scores = _scores(query, key, causal, documents)
        lse = scores.logsumexp(-1)
        out = torch.einsum("bgrqt,btgk->bqgrk", (scores - lse[..., None]).exp(), value.float())
        return out.flatten(2, 3).to(query.dtype), lse.flatten(1, 2).transpose(1, 2)

    def backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        causal: bool,
        documents: Documents | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        groups, scale = key.shape[2], query.shape[3] ** -0.5
        grad, out, key, value = grad.float(), out.float(), key.float(), value.float()
        by_group = (groups, -1)
        own = (grad * out).sum(-1).transpose(1, 2).unflatten(1, by_group)
        grad = grad.unflatten(2, by_group)
        scores = _scores(query, key, causal, documents)
        shares = (scores - lse.transpose(1, 2).unflatten(1, by_group)[..., None]).exp()
        grad_scores = shares * (torch.einsum("bqgrk,btgk->bgrqt", grad, value) - own[..., None]) * scale
        grad_query = torch.einsum("bgrqt,btgk->bqgrk", grad_scores, key).flatten(2, 3)
        grad_key = torch.einsum("bgrqt,bqgrk->btgk", grad_scores, query.float().unflatten(2, by_group))
        return grad_query, grad_key, torch.einsum("bgrqt,bqgrk->btgk", shares, grad)


def _scores(query: Tensor, key: Tensor, causal: bool, documents: Documents | None) -> Tensor:
    """[B, G, H / G, Q, T] in float32, -inf where a key is hidden."""
    by_group = (query.float() * query.shape[3] ** -0.5).unflatten(2, (key.shape[2], -1))
    scores = torch.einsum("bqgrk,btgk->bgrqt", by_group, key.float())
    if documents is not None:
        return scores.masked_fill(~documents.mask()[:, None, None], -math.inf)
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        return scores.masked_fill(hidden, -math.inf)
    return scores


class Flash:
    """FlashAttention 2 as torch brings it: any shape; documents as sequences of different lengths."""

    def __init__(self) -> None:
        self.dropout_state: tuple[Tensor, Tensor]

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, causal: bool, documents: Documents | None = None
    ) -> tuple[Tensor, Tensor]:
        inputs = _laid_out(query, key, value, documents=documents)
        out, lse, *self.dropout_state, _ = _aten._flash_attention_forward(
            *inputs, *_limits(query, key, documents), 0.0, causal, False
        )
        if documents is not None:  # [H, B Q]
            return out.view(query.shape), lse.t().reshape(query.shape[:3])
        return out, lse.transpose(1, 2)

    def backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        causal: bool,
        documents: Documents | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        lse = lse.flatten(0, 1).t() if documents is not None else lse.transpose(1, 2)
        grads = _aten._flash_attention_backward(
            *_laid_out(grad, query, key, value, out, documents=documents),
            lse.contiguous(),
            *_limits(query, key, documents),
            0.0,
            causal,
            *self.dropout_state,
        )
        grad_query, grad_key, grad_value = grads
        return grad_query.view(query.shape), grad_key.view(key.shape), grad_value.view(value.shape)


def _laid_out(*tensors: Tensor, documents: Documents | None) -> list[Tensor]:
    """As the kernel wants them: rows end to end if it is told where documents begin."""
    return [x.flatten(0, 1) if documents is not None else x for x in tensors]


def _limits(
    query: Tensor, key: Tensor, documents: Documents | None
) -> tuple[Tensor | None, Tensor | None, int, int]:
    """Where sequences begin among queries and keys, and how long they are at most."""
    if documents is None:
        return None, None, query.shape[1], key.shape[1]
    return documents.borders, documents.borders, documents.longest, documents.longest


class Cudnn:
    """cuDNN's attention: the fastest on Hopper, for shapes that come again."""

    def __init__(self) -> None:
        self.dropout_state: tuple[Tensor, Tensor]
        self.lse_shape: tuple[int, ...]

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, causal: bool, documents: Documents | None = None
    ) -> tuple[Tensor, Tensor]:
        assert documents is None
        results = _aten._scaled_dot_product_cudnn_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), None, True, 0.0, causal, False
        )
        out, lse, self.dropout_state = results[0], results[1], results[6:8]
        # Releases of torch differ: [B, H, Q] in some, [B, H, Q, 1] in others. Its backward wants the same.
        self.lse_shape = lse.shape[3:]
        return out.transpose(1, 2), lse.flatten(2).transpose(1, 2)

    def backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        causal: bool,
        documents: Documents | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        grads = _aten._scaled_dot_product_cudnn_attention_backward(
            # The kernel reads the gradient by the strides of the output.
            grad.contiguous().transpose(1, 2),
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            out.contiguous().transpose(1, 2),
            lse.transpose(1, 2).contiguous().unflatten(2, (-1, *self.lse_shape)),
            *self.dropout_state,
            None,  # no bias
            None,
            None,  # rows of one length
            query.shape[1],
            key.shape[1],
            0.0,
            causal,
        )
        grad_query, grad_key, grad_value = (x.transpose(1, 2) for x in grads)
        return grad_query, grad_key, grad_value
