"""Which token comes next: the likeliest, or one that is drawn.

Every draw takes one uniform number, drawn beforehand: nothing random happens inside a step, so a seed means
the same in a CUDA graph, compiled or not, on any device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nemorun.errors import ConfigError

How = Literal["likeliest", "drawn", "limited"]
"""`limited`: drawn from some of the tokens, for which they must be sorted."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen."""

    temperature: float = 1.0
    """Logits are divided by it. 0: the likeliest token always."""
    top_k: int = 0
    """Draw from the so many likeliest tokens. 0: from all."""
    top_p: float = 1.0
    """Draw from the fewest likeliest tokens that together have at least this probability."""
    seed: int = 0
    """Same seed, same text."""

    def validate(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature={self.temperature} must be 0 (the likeliest token) or more")
        if self.top_k < 0:
            raise ConfigError(f"top_k={self.top_k} must be 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} must be greater than 0 and at most 1 (all tokens)")

    @property
    def how(self) -> How:
        if self.temperature == 0:
            return "likeliest"
        return "limited" if self.top_k or self.top_p < 1 else "drawn"


class Settings:
    """The numbers of a `Sampling` on the device, where a step that is compiled already can read new ones."""

    def __init__(self, device: torch.device) -> None:
        self.temperature = torch.ones((), device=device)
        self.top_k = torch.zeros((), dtype=torch.int64, device=device)
        self.top_p = torch.ones((), device=device)

    def set(self, sampling: Sampling, vocab_size: int) -> None:
        self.temperature.fill_(sampling.temperature)
        self.top_k.fill_(sampling.top_k or vocab_size)
        self.top_p.fill_(sampling.top_p)


def choose(logits: Tensor, uniform: Tensor, settings: Settings, how: How) -> Tensor:
    """logits [B, V] (float32), uniform [B] in [0, 1) -> tokens [B] (int64)."""
    if how == "likeliest":
        return logits.argmax(-1)
    shares = (logits / settings.temperature).softmax(-1)
    if how == "drawn":
        return _drawn(shares, uniform).clamp(max=shares.shape[-1] - 1)
    shares, tokens = shares.sort(dim=-1, descending=True)
    rank = torch.arange(shares.shape[-1], device=shares.device)
    shares = shares * (rank < settings.top_k)
    shares = shares / shares.sum(-1, keepdim=True)
    before = shares.cumsum(-1) - shares
    shares = shares * ((before < settings.top_p) | (rank == 0))
    # A parallel sum may be off in its last bit: no rounding may lead to a token that is left out.
    place = _drawn(shares, uniform).minimum((shares > 0).sum(-1) - 1).clamp(min=0)
    return tokens.gather(-1, place[:, None])[:, 0]


def _drawn(shares: Tensor, uniform: Tensor) -> Tensor:
    """The place [B] at which the running sum of shares [B, V] first exceeds that part of the whole."""
    reached = shares.cumsum(-1)
    return (reached <= uniform[:, None] * reached[:, -1:]).sum(-1)
