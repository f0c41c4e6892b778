"""The transformer. It knows nothing of ranks: `nemorun.training.parallel` shards it from outside.

Shapes are written with B (sequences), S (tokens), D (hidden), H (query heads), G (key/value heads),
K (head width), F (feed-forward width) and V (vocabulary).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nemorun.llm.config import GPTConfig
from nemorun.training.model import TrainableModel


def rotary(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [S, K/2] in float32 of the rotary embedding at `positions` [S]."""
    channels = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    angles = torch.outer(positions.float(), theta ** (-channels / head_dim))
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the channel pairs (k, k + K/2) of `x` [B, S, heads, K] by each position's angles, in float32."""
    low, high = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x.dtype)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention: query [B, S, H, K], key and value [B, S, G, K] -> [B, S, H, K]."""
    if query.device.type == "cpu" and query.shape[1] <= 512:
        return _attend_as_products(query, key, value)
    mixed = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        is_causal=True,
        enable_gqa=query.shape[2] != key.shape[2],
    )
    return mixed.transpose(1, 2)


def _attend_as_products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same as two matrix products, [S, S] scores whole: for short sequences on the CPU.

    torch's own kernel takes 2 to 3 times as long there in bfloat16. The query heads that share a key are
    stacked, so that no key or value is repeated.
    """
    batch, length, heads, width = query.shape
    groups = key.shape[2]
    stacked = query.unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4).reshape(batch * groups, -1, width)
    key, value = (x.transpose(1, 2).reshape(batch * groups, length, width) for x in (key, value))
    scores = (stacked * width**-0.5) @ key.transpose(1, 2)
    hidden = torch.full((length, length), -math.inf, dtype=scores.dtype, device=scores.device).triu(1)
    shares = (scores.unflatten(1, (-1, length)) + hidden).softmax(-1).flatten(1, 2)
    return (shares @ value).view(batch, heads, length, width).transpose(1, 2)


class Attention(nn.Module):
    """Causal self-attention with grouped queries: [B, S, D] -> [B, S, D]."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.key = nn.Linear(config.hidden_size, config.kv_heads * config.head_dim, bias=False)
        self.value = nn.Linear(config.hidden_size, config.kv_heads * config.head_dim, bias=False)
        self.output = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        # Head counts come from the projections' own outputs, not from the configuration, so that a rank
        # which holds only some of the heads runs the same code.
        query, key, value = (
            projection(x).unflatten(-1, (-1, self.head_dim))
            for projection in (self.query, self.key, self.value)
        )
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        return self.output(attend(query, key, value).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU: [B, S, D] -> [B, S, D] through F gated channels."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.ffn_size, bias=False)
        self.up = nn.Linear(config.hidden_size, config.ffn_size, bias=False)
        self.down = nn.Linear(config.ffn_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Attention and feed-forward, each normalised before and added after: [B, S, D] -> [B, S, D]."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.feed_forward(self.feed_forward_norm(x))


class GPTModel(TrainableModel):
    """Tokens [B, S] (int64) -> logits [B, S, V].

    The weights that a new model has are those of torch's layers; `nemorun.training.parallel.initialize`
    (or `init_parameter` for each) gives them their proper first values. A model made under
    `torch.device("meta")` takes no memory until then.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        config.validate()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        cos, sin = rotary(positions, self.config.head_dim, self.config.rope_theta)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.head(self.norm(x))

    def units(self) -> list[nn.Module | list[nn.Module]]:
        # A tied head shares its weight with the embedding, which belongs to the root.
        last: list[nn.Module] = [self.norm] if self.config.tie_embeddings else [self.norm, self.head]
        return [*self.blocks, last]

    def init_parameter(self, name: str, weight: Tensor, generator: torch.Generator) -> None:
        if name.endswith("norm.weight"):
            weight.fill_(1.0)
            return
        into_residual = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
        scale = 1 / math.sqrt(2 * self.config.num_layers) if into_residual else 1.0
        weight.normal_(0.0, self.config.init_std * scale, generator=generator)
