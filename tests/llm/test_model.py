"""The transformer: its shapes, that it looks back only, and that its counts are those of the real thing."""

from __future__ import annotations

import pytest
import torch

from nemorun.errors import ConfigError
from nemorun.llm import GPTConfig, GPTModel
from nemorun.llm.generation import generate
from nemorun.llm.model import attend, rotary, rotate
from nemorun.training.parallel import initialize

LLAMA_8B = GPTConfig(num_query_groups=8)


def tiny(**changes: object) -> GPTConfig:
    sizes = {
        "hidden_size": 32,
        "num_layers": 2,
        "num_attention_heads": 4,
        "seq_length": 16,
        "vocab_size": 257,
    }
    return GPTConfig(**sizes | changes)


def made(config: GPTConfig, seed: int = 0) -> GPTModel:
    model = GPTModel(config)
    initialize(model, seed)
    return model


def test_the_defaults_are_llama_3_8b_and_count_as_it_does() -> None:
    assert LLAMA_8B.num_parameters() == 8_030_261_248
    assert LLAMA_8B.flops_per_token(8192) == pytest.approx(57.9e9, rel=1e-3)
    assert LLAMA_8B.flops_per_token(8192, causal=True) == pytest.approx(51.5e9, rel=1e-3)


@pytest.mark.parametrize(
    "changes", [{}, {"num_query_groups": 2}, {"tie_embeddings": True}, {"ffn_hidden_size": 48}]
)
def test_parameters_are_counted_as_torch_counts_them(changes: dict[str, object]) -> None:
    config = tiny(**changes)
    assert sum(p.numel() for p in GPTModel(config).parameters()) == config.num_parameters()


def test_logits_depend_on_what_came_before_and_on_nothing_else() -> None:
    model = made(tiny(num_query_groups=2))
    tokens = torch.randint(0, 257, (2, 16), generator=torch.Generator().manual_seed(1))
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 257
    before, after = model(tokens), model(changed)
    assert before.shape == (2, 16, 257)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.isclose(before[:, 9:], after[:, 9:]).all(dim=-1).any()


def test_grouped_queries_equal_repeated_heads() -> None:
    grouped, full = made(tiny(num_query_groups=2)), made(tiny())
    weights = grouped.state_dict()
    for name in weights:
        if name.endswith(("key.weight", "value.weight")):
            weights[name] = weights[name].unflatten(0, (2, 8)).repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(weights)
    tokens = torch.arange(16)[None]
    torch.testing.assert_close(grouped(tokens), full(tokens))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_as_products_equals_that_of_torch(groups: int) -> None:
    generator = torch.Generator().manual_seed(4)
    inputs = [torch.randn(2, 16, n, 8, generator=generator, requires_grad=True) for n in (4, groups, groups)]
    query, key, value = (x.transpose(1, 2) for x in inputs)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=True
    ).transpose(1, 2)
    found = attend(*inputs)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        torch.autograd.grad(found.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_rotary_product_depends_on_the_distance_alone() -> None:
    query, key = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(2))

    def product(query_at: int, key_at: int) -> float:
        positions = torch.tensor([query_at, key_at])
        cos, sin = rotary(positions, 8, 10000.0)
        return float((rotate(query, cos[:1], sin[:1]) * rotate(key, cos[1:], sin[1:])).sum())

    assert product(3, 1) == pytest.approx(product(103, 101), abs=1e-4)
    assert product(3, 1) != pytest.approx(product(4, 1), abs=1e-4)


def test_first_weights_are_set_by_the_seed() -> None:
    first, again, other = (made(tiny(), seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    assert first["head.weight"].std() == pytest.approx(0.02, rel=0.1)
    assert first["blocks.0.attention.output.weight"].std() == pytest.approx(0.01, rel=0.1)
    assert (first["blocks.0.attention_norm.weight"] == 1).all()


def test_generation_repeats_itself_and_stops_at_the_end_of_a_document() -> None:
    model = made(tiny())
    texts = {generate(model, b"def ", max_tokens=20, context=16, seed=3) for _ in range(2)}
    assert len(texts) == 1 and texts.pop().startswith("def ")

    def ends(tokens: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.full((1, tokens.shape[1]), 256), 257) * 100.0

    assert generate(ends, b"all", max_tokens=20, context=16) == "all"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 5}, "hidden_size=32 is not divisible by num_attention_heads=5"),
        ({"num_attention_heads": 32}, "must be even"),
        ({"num_query_groups": 3}, "num_attention_heads=4 is not divisible by num_query_groups=3"),
        ({"num_layers": 0}, "num_layers=0 must be at least 1"),
        ({"rope_theta": 0.0}, "rope_theta=0.0 must be greater than 0"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GPTModel(tiny(**changes))
