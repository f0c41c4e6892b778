"""How many parameters a rank holds, by the units in which FSDP gathers them; torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from nemorun.llm.config import GPTConfig
from nemorun.training.config import ParallelismConfig, TrainerConfig


@dataclass(frozen=True)
class Unit:
    """Parameters that are gathered and freed together, as tensor- and expert-parallel ranks divide them."""

    trained: float = 0
    frozen: float = 0
    shards: int = 1
    """Ranks that each hold a part of it."""

    @property
    def size(self) -> float:
        return self.trained + self.frozen

    def bytes_gathered(self, width: int) -> float:
        """The weights as products read them."""
        return self.size * width

    def bytes_exchanged(self, width: int) -> float:
        """The buffer that the ranks' parts arrive in; a rank that holds all has none."""
        return self.size * width if self.shards > 1 else 0

    def bytes_sent(self, width: int) -> float:
        """This rank's own part in the type that is gathered."""
        return self.size * width / self.shards if self.shards > 1 else 0


@dataclass(frozen=True)
class Parameters:
    """Units of a model on a rank, whatever its stage."""

    block: tuple[Unit, ...]
    """One block: with expert parallelism its experts are a unit of their own, shared by fewer ranks."""
    matrices: float
    """Numbers in the matrices of a block, without experts."""
    embedding: Unit
    head: Unit
    """The last norm and the head; no weight of its own where it is tied to the embedding."""
    wraps: bool
    """Are there other ranks that hold these weights for other data? Then FSDP holds them."""
    largest: float
    """The largest parameter before it is divided."""
    drawn: float
    """At most while a first weight is drawn whole and this rank takes its part, in numbers."""


def shards_of(trainer: TrainerConfig, parallelism: ParallelismConfig) -> tuple[int, int]:
    """Ranks that hold a weight for other data, and ranks among which each copy of it is divided."""
    world = trainer.num_nodes * trainer.devices
    holders = parallelism.data_ranks(world) * parallelism.context_parallel
    return holders, 1 if trainer.strategy == "ddp" else holders // parallelism.replicate


def rank_parameters(model: GPTConfig, trainer: TrainerConfig, parallelism: ParallelismConfig) -> Parameters:
    holders, shards = shards_of(trainer, parallelism)
    tensor, experts = parallelism.tensor_parallel, parallelism.expert_parallel
    hidden, ffn = model.hidden_size, model.ffn_size
    frozen = model.lora.enabled
    norm = hidden * (2 if model.normalization == "layernorm1p" else 1)
    queries, keys = model.num_attention_heads * model.head_dim, model.kv_heads * model.head_dim
    attention = hidden * (2 * queries + 2 * keys) / tensor
    factors = 3 if model.gated else 2

    def unit(weights: float, adapters: float = 0, over: int = shards) -> Unit:
        return Unit(adapters, weights, over) if frozen else Unit(weights, 0, over)

    adapters = _adapters(model, tensor)
    if not model.num_experts:
        block: tuple[Unit, ...] = (unit(attention + 2 * norm + factors * hidden * ffn / tensor, adapters),)
        largest, over = (factors - 1) * hidden * ffn, shards
    else:
        mixture = model.num_experts / experts * factors * hidden * ffn / tensor
        rest = attention + 2 * norm + model.num_experts * hidden
        apart = (unit(rest, adapters), unit(mixture, over=shards // experts))
        block = apart if experts > 1 else (unit(rest + mixture, adapters),)
        largest, over = model.num_experts * 2 * hidden * ffn, shards // experts
    table = model.vocab_size * hidden
    of_table = table / tensor
    # DTensor copies this rank's part. Where two kinds of parallelism cut one dimension, it makes all parts.
    twice = holders > 1 and (tensor > 1 or experts > 1)

    def drawn(size: float, over: int) -> float:
        return size * (1 + twice + (1 / over if holders > 1 else 1 / tensor if tensor > 1 else 0))

    return Parameters(
        block=block,
        matrices=attention + (0 if model.num_experts else factors * hidden * ffn / tensor),
        embedding=unit(of_table),
        head=unit(norm + (0 if model.tie_embeddings else of_table)),
        wraps=holders > 1,
        largest=max(largest, table),
        drawn=max(drawn(largest, over), drawn(table, shards)),
    )


def _adapters(model: GPTConfig, tensor: int) -> float:
    """Parameters of a block's adapters: A [targets x R, in] and B [out, R], one of them cut by `tensor`."""
    if not model.lora.enabled:
        return 0
    rank, hidden, targets = model.lora.rank, model.hidden_size, set(model.lora.targets)
    queries, keys = model.num_attention_heads * model.head_dim, model.kv_heads * model.head_dim
    found = 0.0
    if targets & {"q_proj", "k_proj", "v_proj"}:
        found += rank * (3 * hidden + (queries + 2 * keys) / tensor)
    if "o_proj" in targets:
        found += rank * (queries / tensor + hidden)
    if model.num_experts:
        return found
    factors = 2 if model.gated else 1
    if targets & ({"gate_proj", "up_proj"} if model.gated else {"up_proj"}):
        found += rank * factors * (hidden + model.ffn_size / tensor)
    if "down_proj" in targets:
        found += rank * (model.ffn_size / tensor + hidden)
    return found
