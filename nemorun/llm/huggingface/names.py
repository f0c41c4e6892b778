"""Which tensors of a Hugging Face checkpoint a parameter of ours is made of, and where their rows stand.

The model keeps query, key and value in one matrix, gate and up in another, and all experts of a block in one
tensor; Hugging Face keeps each apart. Rows are only moved, never changed, so both directions are exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nemorun.llm.config import GPTConfig

PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Part:
    """One matrix (or vector) of a checkpoint."""

    name: str
    shape: tuple[int, ...]
    places: Tensor | None = None
    """Row j of it is row places[j] of ours, rising. None: it is the whole of ours."""
    expert: int | None = None
    """Its place in the first dimension of ours, where that counts experts."""


@dataclass(frozen=True)
class Entry:
    """One parameter of ours."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    """None share a row. Rows that belong to no part are 0: those of adapters that were not asked for."""


@dataclass(frozen=True)
class _Matrix:
    """A matrix of a block: its name in ours (without the block), and its parts' names in order."""

    name: str
    parts: tuple[str, ...]
    columns: int
    places: tuple[Tensor, ...]
    """The rows of each part."""

    @property
    def rows(self) -> int:
        return sum(map(len, self.places))


def model_entries(config: GPTConfig) -> Iterator[Entry]:
    """All parameters of the model, adapters not, in the order of its layers."""
    width = config.hidden_size
    matrices = (*_attention(config), *(() if config.num_experts else _feed_forward(config)))
    pair = gate_up_places(config) if config.num_experts else ()
    yield _whole("embedding.weight", "model.embed_tokens.weight", (config.vocab_size, width))
    for block in range(config.num_layers):
        layer = f"model.layers.{block}"
        for norm, theirs in (
            ("attention_norm", "input_layernorm"),
            ("feed_forward_norm", "post_attention_layernorm"),
        ):
            yield from _norm(config, f"blocks.{block}.{norm}", f"{layer}.{theirs}")
        for matrix in matrices:
            yield _entry(block, matrix)
        if config.num_experts:
            yield from _experts(config, block, pair)
    yield from _norm(config, "norm", "model.norm")
    if not config.tie_embeddings:
        yield _whole("head.weight", "lm_head.weight", (config.vocab_size, width))


def adapter_entries(config: GPTConfig) -> Iterator[Entry]:
    """The adapters of `config.lora` as PEFT names them: `lora_a` and `lora_b` beside each adapted matrix."""
    rank, targets = config.lora.rank, set(config.lora.targets)
    matrices = (*_attention(config), *(() if config.num_experts else _feed_forward(config)))
    for block in range(config.num_layers):
        for matrix in matrices:
            names = [part.rpartition(".")[2] for part in matrix.parts]
            if targets.isdisjoint(names):
                continue
            into, out = [], []
            for number, (part, places) in enumerate(zip(matrix.parts, matrix.places, strict=True)):
                if names[number] not in targets:
                    continue
                theirs = f"{PEFT_PREFIX}model.layers.{block}.{part}"
                rows = torch.arange(number * rank, (number + 1) * rank)
                into.append(Part(f"{theirs}.lora_A.weight", (rank, matrix.columns), rows))
                out.append(Part(f"{theirs}.lora_B.weight", (len(places), rank), places))
            ours = f"blocks.{block}.{matrix.name}"
            yield Entry(f"{ours}.lora_a", (len(names) * rank, matrix.columns), tuple(into))
            yield Entry(f"{ours}.lora_b", (matrix.rows, rank), tuple(out))


def qkv_places(config: GPTConfig) -> tuple[Tensor, ...]:
    """Rows of query, key and value: for each group its query heads, its key head, its value head."""
    heads, groups, width = config.num_attention_heads, config.kv_heads, config.head_dim
    rows = torch.arange((heads + 2 * groups) * width).view(groups, heads // groups + 2, width)
    return rows[:, :-2].flatten(), rows[:, -2].flatten(), rows[:, -1].flatten()


def gate_up_places(config: GPTConfig) -> tuple[Tensor, ...]:
    """Rows of gate and up: a block of gate rows, then the up rows of the same channels, and so on."""
    rows = torch.arange(2 * config.ffn_size).view(-1, 2, config.gate_block)
    return rows[:, 0].flatten(), rows[:, 1].flatten()


def _attention(config: GPTConfig) -> tuple[_Matrix, ...]:
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    inner = config.num_attention_heads * config.head_dim
    return (
        _Matrix("attention.qkv", names, config.hidden_size, qkv_places(config)),
        _Matrix("attention.output", ("self_attn.o_proj",), inner, _all(config.hidden_size)),
    )


def _feed_forward(config: GPTConfig) -> tuple[_Matrix, ...]:
    if config.gated:
        names = ("mlp.gate_proj", "mlp.up_proj")
        first = _Matrix("feed_forward.gate_up", names, config.hidden_size, gate_up_places(config))
    else:
        first = _Matrix("feed_forward.up", ("mlp.up_proj",), config.hidden_size, _all(config.ffn_size))
    down = _Matrix("feed_forward.down", ("mlp.down_proj",), config.ffn_size, _all(config.hidden_size))
    return first, down


def _experts(config: GPTConfig, block: int, pair: tuple[Tensor, ...]) -> Iterator[Entry]:
    """Mixtral: w1 is the gate, w3 is up, w2 is down. `pair`: the rows of gate and up."""
    count, width, inner = config.num_experts, config.hidden_size, config.ffn_size
    ours, theirs = f"blocks.{block}.feed_forward", f"model.layers.{block}.block_sparse_moe"
    yield _whole(f"{ours}.router.weight", f"{theirs}.gate.weight", (count, width))
    gate_up, down = [], []
    gate, up = pair
    for expert in range(count):
        of_expert = f"{theirs}.experts.{expert}"
        gate_up.append(Part(f"{of_expert}.w1.weight", (inner, width), gate, expert))
        gate_up.append(Part(f"{of_expert}.w3.weight", (inner, width), up, expert))
        down.append(Part(f"{of_expert}.w2.weight", (width, inner), None, expert))
    yield Entry(f"{ours}.gate_up", (count, 2 * inner, width), tuple(gate_up))
    yield Entry(f"{ours}.down", (count, width, inner), tuple(down))


def _entry(block: int, matrix: _Matrix) -> Entry:
    parts = tuple(
        Part(f"model.layers.{block}.{name}.weight", (len(rows), matrix.columns), rows)
        for name, rows in zip(matrix.parts, matrix.places, strict=True)
    )
    return Entry(f"blocks.{block}.{matrix.name}.weight", (matrix.rows, matrix.columns), parts)


def _norm(config: GPTConfig, ours: str, theirs: str) -> Iterator[Entry]:
    yield _whole(f"{ours}.weight", f"{theirs}.weight", (config.hidden_size,))
    if config.normalization == "layernorm1p":
        yield _whole(f"{ours}.bias", f"{theirs}.bias", (config.hidden_size,))


def _whole(ours: str, theirs: str, shape: tuple[int, ...]) -> Entry:
    return Entry(ours, shape, (Part(theirs, shape),))


def _all(rows: int) -> tuple[Tensor, ...]:
    return (torch.arange(rows),)
