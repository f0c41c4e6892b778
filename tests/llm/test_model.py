"""The transformer: its shapes, that it looks back only, and that its counts are those of the real thing."""

from __future__ import annotations

import pytest
import torch

from nemorun.errors import ConfigError
from nemorun.llm import GPTConfig, GPTModel
from nemorun.llm.config import LoraConfig, RopeScaling
from nemorun.llm.layers import rotary
from nemorun.llm.sample import continued
from nemorun.training.batch import Inputs
from nemorun.training.config import ParallelismConfig
from nemorun.training.loss import IGNORE
from nemorun.training.rotary import rotate

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
    return GPTModel(config).materialize(seed=seed)


def test_the_defaults_are_llama_3_8b_and_count_as_it_does() -> None:
    assert LLAMA_8B.num_parameters() == 8_030_261_248
    assert LLAMA_8B.flops_per_token(8192) == pytest.approx(57.9e9, rel=1e-3)
    assert LLAMA_8B.flops_per_token(8192, causal=True) == pytest.approx(51.5e9, rel=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_query_groups": 2},
        {"tie_embeddings": True},
        {"ffn_hidden_size": 48},
        {"kv_channels": 16},
        {"num_experts": 4},
        {"activation": "squared_relu", "normalization": "layernorm1p"},
    ],
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
        if name.endswith("qkv.weight"):
            # Two groups of [query, query, key, value] become four of [query, key, value].
            heads = weights[name].unflatten(0, (2, 4, 8))
            queries, key, value = heads[:, :2], heads[:, 2:3], heads[:, 3:]
            both = (key.expand(2, 2, 8, 32), value.expand(2, 2, 8, 32))
            weights[name] = torch.stack((queries, *both), dim=2).flatten(0, 3)
    full.load_state_dict(weights)
    tokens = torch.arange(16)[None]
    torch.testing.assert_close(grouped(tokens), full(tokens))


def test_the_loss_is_that_of_the_logits_and_has_their_gradients() -> None:
    model = made(tiny())
    tokens = torch.randint(0, 257, (2, 16), generator=torch.Generator().manual_seed(1))
    labels = tokens.roll(-1, 1)
    labels[:, ::3] = IGNORE
    loss = model(tokens, Inputs(labels=labels))
    expected = torch.nn.functional.cross_entropy(
        model(tokens).flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    torch.testing.assert_close(loss, expected)
    weights = list(model.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(loss, weights), torch.autograd.grad(expected, weights), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_adapters_begin_as_nothing_and_train_alone() -> None:
    lora = LoraConfig(enabled=True, rank=2, targets=("q_proj", "up_proj", "down_proj"))
    plain, adapted = made(tiny()), made(tiny(lora=lora))
    tokens = torch.arange(16)[None]
    assert torch.equal(plain(tokens), adapted(tokens))
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    adapted(tokens, Inputs(labels=tokens)).backward()
    assert all((p.grad is None) != p.requires_grad for p in adapted.parameters())


def test_each_adapted_matrix_has_its_own_rows() -> None:
    config = tiny(
        lora=LoraConfig(enabled=True, rank=2, alpha=6.0, targets=("q_proj", "v_proj")), num_query_groups=2
    )
    qkv = made(config).blocks["0"].attention.qkv
    generator = torch.Generator().manual_seed(5)
    for parameter in (qkv.lora_a, qkv.lora_b):
        parameter.data.normal_(generator=generator)
    x = torch.randn(3, 32, generator=generator)
    a = qkv.lora_a.unflatten(0, (3, 2))
    b = qkv.lora_b.unflatten(0, (2, 4, 8))  # groups, heads of a group (2 queries, key, value), rows
    change = torch.zeros(2, 4, 8, 32)
    change[:, :2] = b[:, :2] @ a[0]
    change[:, 3] = b[:, 3] @ a[2]
    torch.testing.assert_close(qkv(x), x @ (qkv.weight + 3.0 * change.flatten(0, 2)).T)


def test_a_rotary_product_depends_on_the_distance_alone() -> None:
    query, key = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(2))

    def product(query_at: int, key_at: int) -> float:
        positions = torch.tensor([query_at, key_at])
        cos, sin = rotary(positions, tiny(rope_theta=10000.0))
        return float((rotate(query, cos[:1], sin[:1]) * rotate(key, cos[1:], sin[1:])).sum())

    assert product(3, 1) == pytest.approx(product(103, 101), abs=1e-4)
    assert product(3, 1) != pytest.approx(product(4, 1), abs=1e-4)


def test_stretched_wavelengths_leave_the_short_ones() -> None:
    """As a table that was worked out by hand from Llama 3.1's rule."""
    config = tiny(rope_theta=10000.0, rope_scaling=RopeScaling(factor=8, original_context=32))
    plain = tiny(rope_theta=10000.0)
    at_one = torch.ones(1)
    angle, before = (torch.atan2(*reversed(rotary(at_one, c)))[0] for c in (config, plain))
    # The context turns 32 x (1, 0.1, 0.01, 0.001) / 2 pi times: 5.1 stays; 0.51 and less are an eighth.
    torch.testing.assert_close(angle, before * torch.tensor([1, 1 / 8, 1 / 8, 1 / 8]))


def test_a_model_without_weights_says_so() -> None:
    with pytest.raises(RuntimeError, match="no weights yet"):
        GPTModel(tiny())(torch.zeros(1, 4, dtype=torch.int64))


def test_first_weights_are_set_by_the_seed() -> None:
    first, again, other = (made(tiny(), seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    assert first["head.weight"].std() == pytest.approx(0.02, rel=0.1)
    assert first["blocks.0.attention.output.weight"].std() == pytest.approx(0.01, rel=0.1)
    assert (first["blocks.0.attention_norm.weight"] == 1).all()


def test_a_sample_repeats_itself_and_stops_at_the_end_of_a_document() -> None:
    model = made(tiny())
    texts = {continued(model, b"def ", max_tokens=20, context=16, seed=3) for _ in range(2)}
    assert len(texts) == 1 and texts.pop().startswith("def ")

    def ends(tokens: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.full((1, tokens.shape[1]), 256), 257) * 100.0

    assert continued(ends, b"all", max_tokens=20, context=16) == "all"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 5}, "hidden_size=32 is not divisible by num_attention_heads=5"),
        ({"num_attention_heads": 32}, "must be even"),
        ({"rotary_percent": 0.0}, "rotary_percent=0.0 must be greater than 0"),
        ({"num_experts": 2, "experts_per_token": 3}, "experts_per_token=3 must be from 1 to num_experts=2"),
        ({"lora": LoraConfig(rank=0)}, "lora.rank=0 must be at least 1"),
        ({"num_query_groups": 3}, "num_attention_heads=4 is not divisible by num_query_groups=3"),
        ({"num_layers": 0}, "num_layers=0 must be at least 1"),
        ({"rope_theta": 0.0}, "rope_theta=0.0 must be greater than 0"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GPTModel(tiny(**changes))


@pytest.mark.parametrize(
    ("changes", "parallelism", "message"),
    [
        ({}, {"tensor_parallel": 8}, "num_attention_heads=4 is not divisible by tensor_parallel=8"),
        ({"num_query_groups": 1}, {"tensor_parallel": 2}, "num_query_groups=1 is not divisible"),
        ({}, {"tensor_parallel": 2}, "vocab_size=257 is not divisible by tensor_parallel=2"),
        ({}, {"pipeline_parallel": 4}, "num_layers=2 is not divisible by pipeline_parallel=4"),
        ({}, {"context_parallel": 3}, "sequence of 16 is not divisible by 2 x context_parallel=3"),
        ({}, {"expert_parallel": 2}, "expert_parallel=2 needs experts"),
        ({"num_experts": 4}, {"expert_parallel": 3}, "num_experts=4 is not divisible by expert_parallel=3"),
        ({"tie_embeddings": True}, {"pipeline_parallel": 2}, "needs pipeline_parallel=1"),
    ],
)
def test_a_shape_that_cannot_be_divided_is_refused(
    changes: dict[str, object], parallelism: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(**changes).check_parallelism(ParallelismConfig(**parallelism))
