"""What a model and its data are, as plain dataclasses: torch-free, so that the launcher can check them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from nemorun.errors import ConfigError
from nemorun.training.config import default_seed


@dataclass
class GPTConfig:
    """A decoder-only transformer of the Llama family: RMSNorm, rotary embeddings, grouped queries, SwiGLU.

    The defaults are the shape of Llama 3.1 8B, apart from what is said at a field.
    """

    hidden_size: int = 4096
    """Width of the residual stream."""
    num_layers: int = 32
    """Transformer blocks."""
    num_attention_heads: int = 32
    """Query heads; each is `hidden_size / num_attention_heads` wide."""
    num_query_groups: int | None = None
    """Key and value heads (grouped-query attention). None: as many as query heads."""
    ffn_hidden_size: int | None = None
    """Width inside the feed-forward layer. None: 3.5 x hidden_size, as Llama 3.1 has it."""
    seq_length: int = 8192
    """Tokens of context."""
    vocab_size: int = 128256
    """Rows of the embedding and of the output head. Byte-level data needs 257."""
    rope_theta: float = 500000.0
    """Base of the rotary embedding's wavelengths."""
    norm_eps: float = 1e-5
    """Added to the mean square inside RMSNorm."""
    tie_embeddings: bool = False
    """Use the input embedding as the output head."""
    init_std: float = 0.02
    """Standard deviation of the first weights; divided by sqrt(2 x layers) where a layer adds its output."""

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def kv_heads(self) -> int:
        return self.num_query_groups or self.num_attention_heads

    @property
    def ffn_size(self) -> int:
        return self.ffn_hidden_size or self.hidden_size * 7 // 2

    def validate(self) -> None:
        for name in ("hidden_size", "num_layers", "num_attention_heads", "seq_length", "vocab_size"):
            _at_least(name, getattr(self, name), 1)
        for name in ("num_query_groups", "ffn_hidden_size"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size={self.hidden_size} is not divisible by "
                f"num_attention_heads={self.num_attention_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(
                f"hidden_size / num_attention_heads = {self.head_dim} must be even for rotary embeddings"
            )
        if self.num_attention_heads % self.kv_heads:
            raise ConfigError(
                f"num_attention_heads={self.num_attention_heads} is not divisible by "
                f"num_query_groups={self.num_query_groups}"
            )
        for name in ("rope_theta", "norm_eps", "init_std"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be greater than 0")

    def num_parameters(self) -> int:
        """Parameters of the whole model, embeddings and norms included."""
        embedding = self.vocab_size * self.hidden_size
        norms = (2 * self.num_layers + 1) * self.hidden_size
        tied = embedding if self.tie_embeddings else 0
        return embedding + self._matmul_parameters() + norms - tied

    def flops_per_token(self, seq_length: int | None = None, *, causal: bool = False) -> float:
        """Floating-point operations of one training token, forward and backward.

        6 x matrix parameters + 12 x layers x hidden x sequence: the usual count, which takes attention as
        if it were not causal. `causal=True` takes half of the attention term.
        """
        attention = 12 * self.num_layers * self.hidden_size * (seq_length or self.seq_length)
        return 6 * self._matmul_parameters() + (attention / 2 if causal else attention)

    def _matmul_parameters(self) -> int:
        """Parameters that a token is multiplied with: all but the input embedding and the norms."""
        query_and_output = 2 * self.hidden_size * self.hidden_size
        key_and_value = 2 * self.hidden_size * self.kv_heads * self.head_dim
        feed_forward = 3 * self.hidden_size * self.ffn_size
        head = self.vocab_size * self.hidden_size
        return self.num_layers * (query_and_output + key_and_value + feed_forward) + head


@dataclass
class DataConfig:
    """Text to train on, read as bytes: 256 byte tokens and one token that ends a document."""

    path: str | Path | None = None
    """A text file, a `.jsonl` file (one document a line, under `text_key`), or a folder with such files.
    None: the sources of the running interpreter's standard library."""
    global_batch_size: int = 8
    """Sequences in one optimizer step, over all ranks."""
    micro_batch_size: int = 1
    """Sequences in one forward pass of one rank; the rest is gradient accumulation."""
    seq_length: int | None = None
    """Tokens in a sequence. None: the model's seq_length."""
    val_fraction: float = 0.01
    """Share of the documents kept for validation, at least one; of a single one, this share of its end."""
    seed: int = field(default_factory=default_seed)
    """Seed of the order of the training sequences. Default: what `run.set_seed` got, else 0."""
    text_key: str = "text"
    """The field that holds the text in `.jsonl` files."""
    cache_dir: str | Path | None = None
    """Where token caches are kept. None: $NEMORUN_CACHE_DIR, else the user's cache folder."""

    def validate(self) -> None:
        _at_least("global_batch_size", self.global_batch_size, 1)
        _at_least("micro_batch_size", self.micro_batch_size, 1)
        if self.seq_length is not None:
            _at_least("seq_length", self.seq_length, 1)
        if self.global_batch_size % self.micro_batch_size:
            raise ConfigError(
                f"global_batch_size={self.global_batch_size} is not divisible by "
                f"micro_batch_size={self.micro_batch_size}"
            )
        if not 0 <= self.val_fraction < 1:
            raise ConfigError(f"val_fraction={self.val_fraction} must be at least 0 and less than 1")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name}={value} must be at least {least}")
