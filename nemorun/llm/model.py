"""The transformer: Llama, Mistral, Mixtral and Nemotron-4 by configuration.

It is divided over ranks from outside (`nemorun.training.parallel`); what it knows of that is where its
activations enter and leave a tensor-parallel region, and which dimension of a weight may be divided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nemorun.llm.config import GPTConfig
from nemorun.llm.experts import Experts
from nemorun.llm.layers import Linear, Norm, rotary
from nemorun.training.attention import Documents, attend, ring_attend
from nemorun.training.batch import Inputs
from nemorun.training.loss import linear_cross_entropy_sum
from nemorun.training.model import ExpertLayer, TrainableModel
from nemorun.training.products import linear, summed_embedding
from nemorun.training.rotary import split_rotated
from nemorun.training.tensor_parallel import WHOLE, Region, local


class Memory(Protocol):
    """The keys and values of one block's earlier tokens, kept while text is generated."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Keep key and value [B, S, G, K], and let query [B, S, H, K] attend to all kept: [B, S, H, K]."""


def _added(residual: Tensor, region: Region, last: Callable[[Tensor | None], Tensor]) -> Tensor:
    """residual + what leaves `region`: its `last` product adds it, unless ranks sum the products up."""
    if region.group is None:
        return last(residual)
    return residual + region.leave(last(None))


class Attention(nn.Module):
    """Causal self-attention with grouped queries, added to a residual: two of [B, S, D] -> [B, S, D].

    The rows of `qkv` stand by key/value head: its query heads, its key, its value.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        queries = config.num_attention_heads // config.kv_heads
        heads = (*[0] * queries, 1, 2)
        self.qkv = Linear(
            config.hidden_size,
            config.kv_heads * len(heads) * self.head_dim,
            ("q_proj", "k_proj", "v_proj"),
            config.lora,
            pattern=heads,
            unit=self.head_dim,
        )
        width = config.num_attention_heads * self.head_dim
        self.output = Linear(width, config.hidden_size, ("o_proj",), config.lora)
        self.heads_of_a_key = queries
        self.region = WHOLE
        self.context_group: torch.distributed.ProcessGroup | None = None

    def forward(
        self,
        x: Tensor,
        residual: Tensor,
        cos: Tensor,
        sin: Tensor,
        documents: Documents | None,
        memory: Memory | None = None,
    ) -> Tensor:
        # Head counts come from the product's own width, so that a rank with some of the heads runs the same.
        qkv = self.qkv(self.region.enter(x)).unflatten(-1, (-1, self.heads_of_a_key + 2, self.head_dim))
        query, key, value = split_rotated(qkv, cos, sin)
        if memory is not None:
            mixed = memory.attend(query, key, value)
        elif self.context_group:
            mixed = ring_attend(query, key, value, documents, self.context_group)
        else:
            mixed = attend(query, key, value, documents)
        return _added(residual, self.region, lambda more: self.output(mixed.flatten(2), more=more))


class FeedForward(nn.Module):
    """SwiGLU through F gated channels, added to a residual: two of [B, S, D] -> [B, S, D].

    The rows of `gate_up` stand in blocks: some gates, then the same channels' other factors. So any rank's
    share of the rows holds pairs, and a GPU reads either half of a pair in whole lines.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.block = config.gate_block
        self.gate_up = Linear(
            config.hidden_size,
            2 * config.ffn_size,
            ("gate_proj", "up_proj"),
            config.lora,
            pattern=(0, 1),
            unit=self.block,
        )
        self.down = Linear(config.ffn_size, config.hidden_size, ("down_proj",), config.lora)
        self.region = WHOLE

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        x = self.region.enter(x)
        if self.gate_up.float8 or self.down.float8:
            inner, largest = self.gate_up.gated(x, self.block)
            return _added(residual, self.region, lambda more: self.down(inner, largest, more))
        both = self.gate_up(x)
        return _added(residual, self.region, lambda more: self.down.of_gate(both, self.block, more))


class SquaredReluFeedForward(nn.Module):
    """Nemotron-4's square of ReLU, without a gate, added to a residual: two of [B, S, D] -> [B, S, D]."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = Linear(config.hidden_size, config.ffn_size, ("up_proj",), config.lora)
        self.down = Linear(config.ffn_size, config.hidden_size, ("down_proj",), config.lora)
        self.region = WHOLE

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        inner = F.relu(self.up(self.region.enter(x))).square()
        return _added(residual, self.region, lambda more: self.down(inner, more=more))


class ExpertFeedForward(Experts):
    """A mixture of experts as a tensor-parallel region: [B, S, D] -> [B, S, D]."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.region = WHOLE

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.region.leave(super().forward(self.region.enter(x), padding))


def feed_forward(config: GPTConfig) -> nn.Module:
    if config.num_experts:
        return ExpertFeedForward(config)
    return FeedForward(config) if config.gated else SquaredReluFeedForward(config)


class Block(nn.Module):
    """Attention and feed-forward, each normalised before and added after: [B, S, D] -> [B, S, D]."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = Norm(config)
        self.attention = Attention(config)
        self.feed_forward_norm = Norm(config)
        self.feed_forward = feed_forward(config)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        documents: Documents | None,
        memory: Memory | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        x, normed = self.attention_norm.beside(x)
        x = self.attention(normed, x, cos, sin, documents, memory)
        x, normed = self.feed_forward_norm.beside(x)
        if isinstance(self.feed_forward, Experts):
            return x + self.feed_forward(normed, padding)
        return self.feed_forward(normed, x)


class Embedding(nn.Module):
    """Tokens [B, S] -> [B, S, D]; tensor-parallel ranks divide the vocabulary."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.weight_sum: Tensor | None = None
        """Where the weight's gradient is added up, if not by autograd (`training.summing`)."""
        self.region = WHOLE

    def forward(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        weight = local(self.weight)
        if self.weight_sum is not None:
            return summed_embedding(tokens, weight, self.weight_sum).to(dtype)
        if self.region.group is None:
            return F.embedding(tokens, weight).to(dtype)
        row = tokens - self.region.rank * len(weight)
        elsewhere = (row < 0) | (row >= len(weight))
        x = F.embedding(row.masked_fill(elsewhere, 0), weight).to(dtype)
        return self.region.leave(x.masked_fill(elsewhere[..., None], 0))


class Head(nn.Module):
    """[B, S, D] -> logits [B, S, V], or the sum of the losses; tensor-parallel ranks divide V."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.weight_sum: Tensor | None = None
        """Where the weight's gradient is added up, if not by autograd (`training.summing`)."""
        self.region: Region = WHOLE

    def forward(self, x: Tensor, labels: Tensor | None, loss_scale: float = 1.0) -> Tensor:
        weight = local(self.weight)
        if labels is not None:
            return linear_cross_entropy_sum(
                x, weight, labels, self.region.group, total=self.weight_sum, scale=loss_scale
            )
        return self.region.join(linear(x, weight.to(x.dtype)))


class GPTModel(TrainableModel):
    """Tokens [B, S] (int64) -> logits [B, S, V], or the sum of the losses where labels are given.

    It is made on the meta device, whatever its size: the trainer gives it weights where it is to run, and
    `materialize` does that by hand. Values that weights have before training are kept.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        config.validate()
        self.config = config
        self.dtype = torch.float32
        self.region = WHOLE
        with torch.device("meta"):
            self.embedding: Embedding | None = Embedding(config)
            self.blocks = nn.ModuleDict({str(i): Block(config) for i in range(config.num_layers)})
            self.norm: Norm | None = Norm(config)
            self.head: Head | None = Head(config)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        if config.lora.enabled:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_("lora_" in name)

    def forward(self, x: Tensor, inputs: Inputs | None = None) -> Tensor:
        inputs = inputs or Inputs()
        if self.embedding is not None:
            if self.embedding.weight.is_meta:
                raise RuntimeError("this model has no weights yet: model.materialize() gives it its first")
            tokens, x = x, self.embedding(x, self.dtype)
            length = tokens.shape[1]
        else:
            length = x.shape[1] * (self.region.ranks if self.region.splits_sequence else 1)
        positions = inputs.positions
        if positions is None:
            positions = torch.arange(length, device=x.device)
        cos, sin = rotary(positions, self.config)
        padding = inputs.padding if self.config.num_experts else None
        for block in self.blocks.values():
            x = block(x, cos, sin, inputs.documents, padding=padding)
        if self.head is None or self.norm is None:
            return x
        return self.head(self.region.enter(self.norm(x)), inputs.labels, inputs.loss_scale)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GPTModel:
        # What moves the weights (`to`, `to_empty`) makes two of one that is shared.
        super()._apply(fn, recurse)
        if self.config.tie_embeddings and self.embedding is not None and self.head is not None:
            self.head.weight = self.embedding.weight
        return self

    @torch.no_grad()
    def materialize(self, device: torch.device | str = "cpu", seed: int = 0) -> GPTModel:
        """Give all weights memory on `device` and the first values of `seed`."""
        from nemorun.training.initialization import initialize

        self.to_empty(device=device)
        initialize(self, seed)
        return self

    def keep(self, blocks: Iterable[str], first: bool, last: bool) -> None:
        self.first, self.last = first, last
        wanted = set(blocks)
        for name in list(self.blocks):
            if name not in wanted:
                del self.blocks[name]
        if not first:
            self.embedding = None
        if not last:
            self.norm = self.head = None

    def hidden_shape(self, tokens: torch.Size) -> tuple[int, ...]:
        rows, length = tokens
        return (
            rows,
            length // (self.region.ranks if self.region.splits_sequence else 1),
            self.config.hidden_size,
        )

    def ends(self) -> tuple[list[nn.Module], list[nn.Module]]:
        # A tied head shares its weight with the embedding: both stay with the root.
        if self.config.tie_embeddings:
            return [], []
        before: list[nn.Module] = [] if self.embedding is None else [self.embedding]
        after: list[nn.Module] = [] if self.norm is None or self.head is None else [self.norm, self.head]
        return before, after

    def expert_layers(self) -> list[ExpertLayer]:
        return [module for module in self.modules() if isinstance(module, Experts)]

    def tensor_dim(self, name: str) -> int | None:
        module, _, kind = name.rpartition(".")
        layer = module.rpartition(".")[2]
        if layer in ("embedding", "head"):
            return 0
        if layer in ("qkv", "gate_up", "up"):
            return {"weight": 0, "lora_b": 0}.get(kind)
        if layer in ("output", "down"):
            return {"weight": 1, "lora_a": 1}.get(kind)
        return {"gate_up": 1, "down": 2}.get(kind)  # of experts, which come first

    def expert_dim(self, name: str) -> int | None:
        return 0 if name.endswith(("feed_forward.gate_up", "feed_forward.down")) else None

    def init_parameter(self, name: str, weight: Tensor, generator: torch.Generator) -> None:
        if name.endswith("norm.weight"):
            weight.fill_(0.0 if self.config.normalization == "layernorm1p" else 1.0)
        elif name.endswith(("norm.bias", "lora_b")):
            weight.zero_()
        elif name.endswith("lora_a"):
            # Xavier's uniform for each target's own [R, in]
            bound = math.sqrt(6 / (self.config.lora.rank + weight.shape[1]))
            weight.uniform_(-bound, bound, generator=generator)
        else:
            into_residual = name.endswith(("attention.output.weight", "down.weight", "feed_forward.down"))
            scale = 1 / math.sqrt(2 * self.config.num_layers) if into_residual else 1.0
            weight.normal_(0.0, self.config.init_std * scale, generator=generator)
