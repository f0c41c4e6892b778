"""The keys and values of earlier tokens, and attention over them.

Shapes: B rows, L places of the cache, S tokens of a prompt, H query heads, G key/value heads, R = H / G query
heads of a key, K head width. A row's first token stands at place 0, whatever the other rows' lengths are, so
that a place is a position, and a prompt's causal mask is all that hides the padding behind shorter prompts.
What padding leaves in the cache is overwritten before a token can see it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nemorun.training.attention import attend

#: Caches hold a multiple of so many places: what a block of threads adds up at once.
PLACES = 128


class PromptMemory:
    """What a block's attention does with whole prompts, of the rows from `first` on.

    `kept` [2, B, G, L, K] are the block's keys and its values.
    """

    def __init__(self, kept: Tensor, first: int) -> None:
        self.kept = kept
        self.first = first

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query [B, S, H, K], key and value [B, S, G, K] -> [B, S, H, K]; B of the cache's rows."""
        rows = slice(self.first, self.first + len(key))
        for kept, new in zip(self.kept, (key, value), strict=True):
            kept[rows, :, : new.shape[1]] = new.transpose(1, 2)
        return attend(query, key, value)


class StepMemory:
    """What it does with one token of every row, each at its own place `at` [B]."""

    def __init__(self, kept: Tensor, at: Tensor) -> None:
        self.kept = kept
        self.at = at

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query [B, 1, H, K], key and value [B, 1, G, K] -> [B, 1, H, K]."""
        rows = torch.arange(len(self.at), device=self.at.device)
        self.kept[:, rows, :, self.at] = torch.cat((key, value), 1)
        return attend_one(query, self.kept[0], self.kept[1], self.at)


def attend_one(query: Tensor, key: Tensor, value: Tensor, at: Tensor) -> Tensor:
    """One query a row over the places 0 to `at` [B]: query [B, 1, H, K], key, value [B, G, L, K] -> as query.

    No key or value is repeated for the R heads that share it, and the softmax is in float32.
    """
    by_key = query[:, 0].unflatten(1, (key.shape[1], -1))
    hidden = torch.arange(key.shape[2], device=at.device) > at[:, None]
    # Of one row, a matrix product would start too few blocks of threads to reach the memory's bandwidth.
    alone = torch.compiler.is_compiling() and len(at) == 1
    scores = _scores(by_key, key) if alone else by_key @ key.transpose(2, 3)
    scores = scores.float() * query.shape[-1] ** -0.5
    shares = scores.masked_fill(hidden[:, None, None], -math.inf).softmax(-1)
    mixed = _sums(shares, value) if alone else shares.to(value.dtype) @ value
    return mixed.flatten(1, 2)[:, None].to(query.dtype)


# The same products as sums, one for each of the R heads. Of those the compiler makes one kernel, which reads
# the keys once for all heads, converts them in registers, and has a block of threads for each few places.


def _scores(query: Tensor, key: Tensor) -> Tensor:
    """query [B, G, R, K], key [B, G, L, K] -> [B, G, R, L] in float32."""
    heads = [(key.float() * one.unsqueeze(2).float()).sum(-1) for one in query.unbind(2)]
    return torch.stack(heads, 2)


def _sums(shares: Tensor, value: Tensor) -> Tensor:
    """shares [B, G, R, L], value [B, G, L, K] -> [B, G, R, K] in float32: by `PLACES`, then over those."""
    shares, value = shares.unflatten(3, (-1, PLACES)), value.unflatten(2, (-1, PLACES))
    heads = [(value.float() * one.unsqueeze(-1)).sum(3) for one in shares.unbind(2)]
    return torch.stack(heads, 2).sum(3)
