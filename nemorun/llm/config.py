"""What a model and its data are, as plain dataclasses: torch-free, so that the launcher can check them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from nemorun.errors import ConfigError
from nemorun.llm.data.config import DataConfig, FinetuneDataConfig
from nemorun.training.config import ParallelismConfig

__all__ = ["DataConfig", "FinetuneDataConfig", "GPTConfig", "LoraConfig", "LoraTarget", "RopeScaling"]


@dataclass
class RopeScaling:
    """How Llama 3.1 stretches rotary wavelengths beyond the context that it was first trained with.

    Wavelengths longer than `original_context / low_freq_factor` are multiplied by `factor`, those shorter
    than `original_context / high_freq_factor` stay, and between them it changes smoothly.
    """

    factor: float = 8.0
    """How much longer the long wavelengths become."""
    low_freq_factor: float = 1.0
    """Bounds the wavelengths that are stretched in full."""
    high_freq_factor: float = 4.0
    """Bounds the wavelengths that stay."""
    original_context: int = 8192
    """Tokens of context before the stretching."""

    def validate(self) -> None:
        _at_least("original_context", self.original_context, 1)
        if not (self.factor >= 1 and 0 < self.low_freq_factor < self.high_freq_factor):
            raise ConfigError(
                f"rope_scaling needs factor={self.factor} of at least 1 and 0 < "
                f"low_freq_factor={self.low_freq_factor} < high_freq_factor={self.high_freq_factor}"
            )


LoraTarget = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""A matrix that LoRA can adapt, by the name that Hugging Face and PEFT give it."""


@dataclass
class LoraConfig:
    """Low-rank adaptation (Hu et al. 2021): W stays, and (alpha / rank) B A is added to it and trained."""

    enabled: bool = False
    """Train adapters and nothing else."""
    rank: int = 16
    """Rows of A and columns of B."""
    alpha: float = 32.0
    """The adapters' output is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Share of the adapters' inputs that is left out at random."""
    targets: tuple[LoraTarget, ...] = get_args(LoraTarget)
    """Matrices that get an adapter. Those of experts (gate, up and down of a mixture) get none."""

    def validate(self) -> None:
        _at_least("lora.rank", self.rank, 1)
        if not self.alpha > 0:
            raise ConfigError(f"lora.alpha={self.alpha} must be greater than 0")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout={self.dropout} must be at least 0 and less than 1")
        if self.enabled and not self.targets:
            raise ConfigError(f"lora.targets is empty: name some of {', '.join(get_args(LoraTarget))}")


@dataclass
class GPTConfig:
    """A decoder-only transformer: Llama, Mistral, Mixtral or Nemotron-4, by its settings.

    The defaults are the shape of Llama 3.1 8B, apart from what is said at a field.
    """

    hidden_size: int = 4096
    """Width of the residual stream."""
    num_layers: int = 32
    """Transformer blocks."""
    num_attention_heads: int = 32
    """Query heads."""
    num_query_groups: int | None = None
    """Key and value heads (grouped-query attention). None: as many as query heads."""
    kv_channels: int | None = None
    """Width of a head. None: hidden_size / num_attention_heads."""
    ffn_hidden_size: int | None = None
    """Width inside the feed-forward layer, or inside each expert. None: 3.5 x hidden_size, as Llama 3.1."""
    seq_length: int = 8192
    """Tokens of context."""
    vocab_size: int = 128256
    """Rows of the embedding and of the output head. Byte-level data needs 257."""
    activation: Literal["swiglu", "squared_relu"] = "swiglu"
    """Inside the feed-forward layer: gated SiLU, or the square of ReLU without a gate (Nemotron-4)."""
    normalization: Literal["rmsnorm", "layernorm1p"] = "rmsnorm"
    """layernorm1p (Nemotron-4) is LayerNorm with a bias, whose weight is stored less 1."""
    norm_eps: float = 1e-5
    """Added to the mean square, or to the variance, inside the norm."""
    rope_theta: float = 500000.0
    """Base of the rotary embedding's wavelengths."""
    rope_scaling: RopeScaling | None = None
    """Stretched wavelengths, as Llama 3.1 has them. None: plain."""
    rotary_percent: float = 1.0
    """Share of each head's width that is rotated; Nemotron-4 rotates half."""
    num_experts: int = 0
    """Feed-forward experts of each block (Mixtral has 8). 0: one dense layer."""
    experts_per_token: int = 2
    """Experts that each token goes through; their weights are the softmax over the chosen."""
    aux_loss_coeff: float = 0.01
    """Weight of the loss that keeps the experts' load even (Switch Transformer, eq. 4 to 6)."""
    tie_embeddings: bool = False
    """Use the input embedding as the output head."""
    init_std: float = 0.02
    """Standard deviation of the first weights; divided by sqrt(2 x layers) where a layer adds its output."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Low-rank adapters."""

    @property
    def head_dim(self) -> int:
        return self.kv_channels or self.hidden_size // self.num_attention_heads

    @property
    def kv_heads(self) -> int:
        return self.num_query_groups or self.num_attention_heads

    @property
    def ffn_size(self) -> int:
        return self.ffn_hidden_size or self.hidden_size * 7 // 2

    @property
    def gate_block(self) -> int:
        """Rows of the gate that stand together in `gate_up`, before the rows of up for the same channels.

        Any even division of the rows over up to 8 tensor-parallel ranks then holds whole pairs, and 64 rows
        are enough for a GPU to read them at full speed.
        """
        return math.gcd(64, self.ffn_size // 8) if self.ffn_size % 8 == 0 else 1

    @property
    def rotary_dim(self) -> int:
        """Channels of each head that are rotated."""
        return int(self.head_dim * self.rotary_percent)

    @property
    def gated(self) -> bool:
        return self.activation == "swiglu"

    def validate(self) -> None:
        for name in ("hidden_size", "num_layers", "num_attention_heads", "seq_length", "vocab_size"):
            _at_least(name, getattr(self, name), 1)
        for name in ("num_query_groups", "ffn_hidden_size", "kv_channels"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        if self.kv_channels is None and self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size={self.hidden_size} is not divisible by "
                f"num_attention_heads={self.num_attention_heads}; kv_channels can set the width of a head"
            )
        if not 0 < self.rotary_percent <= 1:
            raise ConfigError(f"rotary_percent={self.rotary_percent} must be greater than 0 and at most 1")
        if self.rotary_dim % 2 or not self.rotary_dim:
            raise ConfigError(
                f"{self.rotary_dim} of a head's {self.head_dim} channels are rotated (rotary_percent="
                f"{self.rotary_percent}): their number must be even for rotary embeddings"
            )
        if self.num_attention_heads % self.kv_heads:
            raise ConfigError(
                f"num_attention_heads={self.num_attention_heads} is not divisible by "
                f"num_query_groups={self.num_query_groups}"
            )
        for name in ("rope_theta", "norm_eps", "init_std"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be greater than 0")
        self._validate_experts()
        if self.rope_scaling:
            self.rope_scaling.validate()
        self.lora.validate()

    def _validate_experts(self) -> None:
        _at_least("num_experts", self.num_experts, 0)
        _at_least("aux_loss_coeff", self.aux_loss_coeff, 0)
        if self.num_experts and not 1 <= self.experts_per_token <= self.num_experts:
            raise ConfigError(
                f"experts_per_token={self.experts_per_token} must be from 1 to num_experts={self.num_experts}"
            )
        if self.num_experts and not self.gated:
            raise ConfigError(f"num_experts={self.num_experts} needs activation=swiglu")

    def check_parallelism(self, parallelism: ParallelismConfig, seq_length: int | None = None) -> None:
        """The shape must be divisible as `parallelism` wants. Raises ConfigError with both numbers."""
        tensor, context = parallelism.tensor_parallel, parallelism.context_parallel
        for name, value in (
            ("num_attention_heads", self.num_attention_heads),
            ("num_query_groups", self.kv_heads),
            ("ffn_hidden_size", self.ffn_size),
            ("vocab_size", self.vocab_size),
        ):
            _divisible(f"model.{name}={value}", value, "tensor_parallel", tensor)
        if self.gated:  # a gate and its channel of up stay on one rank
            blocks = self.ffn_size // self.gate_block
            what = f"model.ffn_hidden_size={self.ffn_size}, in blocks of {self.gate_block}: {blocks}"
            _divisible(what, blocks, "tensor_parallel", tensor)
        stages = parallelism.pipeline_parallel * parallelism.virtual_pipeline
        _divisible(
            f"model.num_layers={self.num_layers}",
            self.num_layers,
            f"pipeline_parallel={parallelism.pipeline_parallel} x virtual_pipeline",
            parallelism.virtual_pipeline,
            stages,
        )
        if stages > 1 and self.tie_embeddings:
            raise ConfigError("model.tie_embeddings=True needs pipeline_parallel=1: its ends share a weight")
        length = seq_length or self.seq_length
        if context > 1:
            _divisible(f"the sequence of {length}", length, "2 x context_parallel", context, 2 * context)
        if parallelism.splits_sequence:
            _divisible(f"the sequence of {length // context}", length // context, "tensor_parallel", tensor)
        if parallelism.expert_parallel > 1 and not self.num_experts:
            raise ConfigError(
                f"parallelism.expert_parallel={parallelism.expert_parallel} needs experts, and "
                "model.num_experts is 0"
            )
        if self.num_experts:
            _divisible(
                f"model.num_experts={self.num_experts}",
                self.num_experts,
                "expert_parallel",
                parallelism.expert_parallel,
            )

    def num_parameters(self) -> int:
        """Parameters of the whole model, embeddings and norms included, adapters not."""
        embedding = self.vocab_size * self.hidden_size
        norms = (2 * self.num_layers + 1) * self.hidden_size
        if self.normalization == "layernorm1p":
            norms *= 2  # weight and bias
        tied = embedding if self.tie_embeddings else 0
        return embedding + self._matmul_parameters(max(self.num_experts, 1)) + norms - tied

    def flops_per_token(self, seq_length: int | None = None, *, causal: bool = False) -> float:
        """Floating-point operations of one training token, forward and backward.

        6 x matrix parameters + 12 x layers x heads x head width x sequence: the usual count, which takes
        attention as if it were not causal. `causal=True` takes half of the attention term. Of experts, those
        that a token goes through are counted.
        """
        width = self.num_attention_heads * self.head_dim
        attention = 12 * self.num_layers * width * (seq_length or self.seq_length)
        active = self._matmul_parameters(self.experts_per_token if self.num_experts else 1)
        return 6 * active + (attention / 2 if causal else attention)

    def _matmul_parameters(self, experts: int) -> int:
        """Parameters that a token is multiplied with, in `experts` experts: not the embedding, not norms."""
        query_and_output = 2 * self.hidden_size * self.num_attention_heads * self.head_dim
        key_and_value = 2 * self.hidden_size * self.kv_heads * self.head_dim
        feed_forward = experts * (3 if self.gated else 2) * self.hidden_size * self.ffn_size
        router = self.num_experts * self.hidden_size
        head = self.vocab_size * self.hidden_size
        return self.num_layers * (query_and_output + key_and_value + feed_forward + router) + head


def _at_least(name: str, value: float, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name}={value} must be at least {least}")


def _divisible(what: str, value: int, name: str, count: int, divisor: int | None = None) -> None:
    if value % (divisor or count):
        raise ConfigError(f"{what} is not divisible by {name}={count}")
