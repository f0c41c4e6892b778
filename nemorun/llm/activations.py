"""What a block of the transformer holds in a GPU's memory for its backward pass, in bytes; torch-free.

Nothing here is fitted. Each list is what torch's min-cut partitioner keeps of the compiled block (`none`,
`selective`) or what `checkpoint` keeps (`full`), each storage counted once; `scripts/bench/memory.py --fake`
prints it from the code that runs, and the tests compare. Three things are not plain to see:

- Elementwise work is computed again if nothing else needs its result. What a product of the backward pass
  reads (normalised inputs, the activation in front of `down`) is kept; but that one is made anew where
  `down` is trained in bfloat16 or float32.
- What attention reads is kept, and not the product that queries, keys and values are cut from.
- torch 2.11 keeps what tensor-parallel ranks have exchanged even with `full`: 2 x S x D and a share of it.
  Later releases compute that again.

Experts are taken to be chosen equally often.
"""

from __future__ import annotations

from dataclasses import dataclass

from nemorun.llm.config import GPTConfig
from nemorun.training.config import ParallelismConfig, Recompute


@dataclass(frozen=True)
class BlockActivations:
    """Bytes of one block on one rank, of one micro-batch."""

    kept: dict[Recompute, float]
    """From its forward to its backward pass, its input included."""
    working: dict[Recompute, float]
    """At most during its backward pass, over what is kept: what is computed again, and the gradients that
    pass through its feed-forward layer, its widest place."""


def block_activations(
    model: GPTConfig,
    parallelism: ParallelismConfig,
    tokens: int,
    width: int,
    *,
    casts_weights: bool,
    float8: bool = False,
) -> BlockActivations:
    """
    Args:
        tokens: This rank's share of a micro-batch: rows x sequence / context_parallel.
        width: Bytes of a number that is computed with.
        casts_weights: Weights lie here in float32 and are converted for each product (no FSDP).
        float8: The matrices are multiplied in float8.
    """
    sizes = _Sizes(model, parallelism)
    between = tokens * width * sizes.hidden / sizes.sequence_ranks
    """The hidden state between matrices: a rank's share of the sequence."""
    wide = tokens * width
    """One channel of all tokens, inside the matrices' region."""
    statistics = tokens * 4 * (sizes.heads + 4 / sizes.sequence_ranks)
    """In float32: attention's log-sum-exp of each head, and what the two norms divide by."""
    exchanged = _exchanged(parallelism, between, wide * sizes.hidden)
    attention = wide * (sizes.queries + 2 * sizes.keys)
    adapted = _Adapted(model)

    whole = between + wide * sizes.hidden + attention
    whole += wide * sizes.queries + statistics + between  # attention's output, the sum after it
    remakes = model.gated and not (model.num_experts or model.lora.enabled or float8)
    """The activation in front of `down` is made anew beside its gradient (`nemorun.training.gating`)."""
    whole += wide * _feed_forward(model, sizes, frozen=model.lora.enabled, adapted=adapted, remakes=remakes)
    if casts_weights and not model.lora.enabled:
        whole += width * sizes.matrices

    targets = 3 * adapted.qkv + adapted.output + 2 * adapted.inner + adapted.down
    between_a_and_b = wide * model.lora.rank * targets
    # An adapter's B, each row at its own target's place (`nemorun.llm.layers.Linear`).
    placed = 3 * (sizes.queries + 2 * sizes.keys) * adapted.qkv + 2 * sizes.inner * adapted.inner
    whole += between_a_and_b + width * model.lora.rank * placed

    selective = between + attention + wide * sizes.queries + tokens * 4 * sizes.heads
    selective += 2 * between if exchanged else wide * sizes.hidden
    selective += wide * sizes.products
    selective += between_a_and_b
    if float8 and not model.lora.enabled:  # what matrices were multiplied with, for their weights' gradients
        selective += tokens * (sizes.hidden + sizes.queries)
        selective += 0 if model.num_experts else tokens * (sizes.hidden + sizes.ffn)

    full = between + exchanged
    gradients = between + wide * (sizes.hidden + sizes.passing + sizes.ffn * remakes)
    kept: dict[Recompute, float] = {"none": whole, "selective": selective, "full": full}
    return BlockActivations(
        kept=kept, working={kind: max(0.0, whole - kept[kind]) + gradients for kind in kept}
    )


def _exchanged(parallelism: ParallelismConfig, between: float, gathered: float) -> float:
    """What tensor-parallel ranks have exchanged for a block: gathered twice, shared out or summed once."""
    if parallelism.tensor_parallel == 1:
        return 0.0
    return 2 * gathered + between if parallelism.splits_sequence else between


def _feed_forward(model: GPTConfig, sizes: _Sizes, frozen: bool, adapted: _Adapted, remakes: bool) -> float:
    """Channels that it keeps without recomputation, its products and what their weights' gradients read."""
    if not model.num_experts:
        needs_input, needs_inner = not frozen or adapted.inner, not (frozen or remakes) or adapted.down
        return sizes.products + sizes.hidden * needs_input + sizes.ffn * needs_inner
    if frozen:
        return sizes.products
    # The router reads its input in float32, whatever else is computed in; each expert its own rows.
    router = sizes.hidden * 2
    return sizes.products + router + model.experts_per_token * (sizes.hidden + sizes.ffn)


class _Adapted:
    """Which of a block's matrices have adapters."""

    def __init__(self, model: GPTConfig) -> None:
        names = set(model.lora.targets) if model.lora.enabled else set()
        self.qkv = bool(names & {"q_proj", "k_proj", "v_proj"})
        self.output = "o_proj" in names
        self.inner = bool(names & {"gate_proj", "up_proj"}) and not model.num_experts
        self.down = "down_proj" in names and not model.num_experts


class _Sizes:
    """Channels of a rank's part of a block."""

    def __init__(self, model: GPTConfig, parallelism: ParallelismConfig) -> None:
        ranks = parallelism.tensor_parallel
        self.sequence_ranks = ranks if parallelism.splits_sequence else 1
        self.hidden = model.hidden_size
        self.heads = model.num_attention_heads / ranks
        self.queries = self.heads * model.head_dim
        self.keys = model.kv_heads * model.head_dim / ranks
        self.ffn = model.ffn_size / ranks
        factors = 2 if model.gated else 1
        inner = self.inner = factors * self.ffn
        rows = model.experts_per_token if model.num_experts else 1
        # Experts' last product is read by the weights of the sum over a token's experts.
        self.products = rows * (inner + (self.hidden if model.num_experts else 0))
        self.passing = rows * (inner + self.ffn)
        """Gradients of the activation and of the products before it, while one becomes the other."""
        if model.num_experts and parallelism.expert_parallel > 1:
            # Not compiled: each elementwise step stores its result, and rows travel there and back.
            self.passing += rows * (2 * inner + 2 * self.hidden)
        feed_forward = 0 if model.num_experts else (factors + 1) * self.ffn * self.hidden
        self.matrices = self.hidden * (2 * self.queries + 2 * self.keys) + feed_forward
