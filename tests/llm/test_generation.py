"""Generated text: against transformers, against the whole context run anew for each token; and its ends."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from nemorun.errors import ConfigError
from nemorun.llm import Generator, GPTConfig, GPTModel, generate
from nemorun.llm.config import LoraConfig
from nemorun.llm.generation import decoding, sampling
from nemorun.llm.generation.cache import PLACES, attend_one
from nemorun.llm.generation.decoding import Decoder
from nemorun.llm.generation.sampling import How, Sampling, Settings, choose
from nemorun.llm.generation.weights import ready
from nemorun.llm.huggingface import read_config, read_model
from nemorun.training import grouped
from nemorun.training.attention import attend
from tests.llm.huggingface.blank import blank
from tests.llm.huggingface.test_models import FAMILIES, theirs

PROMPTS = [[5, 17, 60], [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 11], [42]]
KINDS: dict[str, dict[str, Any]] = {
    "grouped queries": {"num_query_groups": 2},
    "all heads": {},
    "tied": {"tie_embeddings": True},
    "experts": {"num_experts": 4},
    "squared relu": {"activation": "squared_relu", "normalization": "layernorm1p", "rotary_percent": 0.5},
    "adapters": {
        "lora": LoraConfig(enabled=True, rank=2, dropout=0.5, targets=("q_proj", "v_proj", "up_proj"))
    },
}


def config(**changes: Any) -> GPTConfig:
    sizes = {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 4, "seq_length": 64, "vocab_size": 99}
    return GPTConfig(**sizes | changes)


def made(**changes: Any) -> GPTModel:
    """A model whose tokens differ: with first weights as they are, most would come again and again."""
    model = GPTModel(config(**changes)).materialize(seed=3)
    numbers = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(0, 0.1, generator=numbers))
    return model


def uncached(model: Callable[[Tensor], Tensor], prompt: list[int], count: int) -> list[int]:
    """The likeliest tokens, with the whole context run anew for each."""
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


# --- the same text ---


@pytest.mark.parametrize("family", FAMILIES)
def test_the_likeliest_text_is_that_of_transformers(family: str, tmp_path: Path) -> None:
    model = theirs(family)
    model.save_pretrained(tmp_path / "model")
    settings = read_config(tmp_path / "model")
    ours, parameters = blank(settings)
    read_model(tmp_path / "model", parameters, settings)
    model.generation_config.eos_token_id = None
    found = generate(ours, PROMPTS, max_tokens=40, temperature=0)
    assert any(len(set(row)) > 5 for row in found) or family == "Llama tied"  # which repeats itself
    for prompt, row in zip(PROMPTS, found, strict=True):
        tokens = torch.tensor([prompt])
        whole = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=40,
            pad_token_id=0,
        )
        assert row == whole[0, len(prompt) :].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_any_length_get_what_each_gets_alone_without_a_cache(kind: str) -> None:
    model = made(**KINDS[kind])
    found = generate(model, PROMPTS, max_tokens=25, temperature=0)
    assert model.training  # and so with dropout, which generating left out
    assert found == [uncached(model.eval(), prompt, 25) for prompt in PROMPTS]
    assert found[1:2] == generate(model, PROMPTS[1:2], max_tokens=25, temperature=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_is_left_out(side: str) -> None:
    tokens, mask = torch.full((3, 12), 50), torch.zeros(3, 12)
    for i, prompt in enumerate(PROMPTS):
        place = slice(12 - len(prompt), 12) if side == "left" else slice(0, len(prompt))
        tokens[i, place], mask[i, place] = torch.tensor(prompt), 1
    generator = Generator(made())
    settings = {"max_tokens": 8, "temperature": 0}
    assert generator(tokens, mask=mask, **settings) == generator(PROMPTS, **settings)


def test_prompts_that_are_read_one_group_after_another_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = Generator(made())
    expected = generator(PROMPTS, max_tokens=8, temperature=0)
    monkeypatch.setattr(decoding, "_PROMPT_TOKENS", 22)  # two rows of eleven
    assert generator(PROMPTS, max_tokens=8, temperature=0) == expected


def test_nothing_of_a_call_is_left_for_the_next() -> None:
    generator = Generator(made())
    first = generator(PROMPTS, max_tokens=[3, 9, 40], temperature=0)
    decoder = generator._decoder
    generator([[1] * 50, [2], [3, 4]], max_tokens=14, temperature=0, stop=[7])
    assert generator(PROMPTS, max_tokens=[3, 9, 40], temperature=0) == first
    assert [len(row) for row in first] == [3, 9, 40]
    assert generator._decoder is decoder  # the same shapes: nothing would be compiled again


@pytest.mark.parametrize("compiling", [False, True])
def test_one_query_attends_as_the_last_of_its_row(compiling: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    numbers = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(1, 2 * PLACES, heads, 8, generator=numbers) for heads in (6, 2, 2))
    for length in (1, 100, 2 * PLACES):
        whole = attend(query[:, :length], key[:, :length], value[:, :length])
        kept = [x.transpose(1, 2).clone() for x in (key, value)]
        found = attend_one(query[:, length - 1 : length], *kept, torch.tensor([length - 1]))
        torch.testing.assert_close(found, whole[:, -1:])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_step_gives_the_same_text_and_is_compiled_once_for_all_blocks() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = made(num_query_groups=2, num_layers=3)
    plain, compiled = Generator(model), Generator(model, compile=True)
    for prompts in (PROMPTS[:1], PROMPTS):
        settings = {"max_tokens": 20, "temperature": 0}
        assert compiled(prompts, **settings) == plain(prompts, **settings)
    # Before the blocks, a block, after them, and what is done with the logits: for one row, and for three.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 8
    drawn = {"max_tokens": 20, "seed": 5, "top_k": 8}
    assert compiled(PROMPTS, **drawn) == plain(PROMPTS, **drawn)


@pytest.mark.parametrize("how", ["likeliest", "drawn", "limited"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_asks_the_host_nothing(kind: str, how: How, monkeypatch: pytest.MonkeyPatch) -> None:
    """With tensors that have no values: one that the host needed would be missing. Experts as on a GPU."""
    for module in (grouped, decoding):
        monkeypatch.setattr(module, "suits_gpu", lambda x, weight: x.dtype == torch.bfloat16)
    shapes = {name: one.shape for name, one in GPTModel(config(**KINDS[kind])).state_dict().items()}
    with FakeTensorMode():
        model = GPTModel(config(**KINDS[kind]))
        weights = {name: torch.empty(shape).bfloat16() for name, shape in shapes.items()}
        model.load_state_dict(weights, assign=True)
        decoder = Decoder(ready(model), 2, 2 * PLACES, 1, how, compiled=False)
        decoder.step()
        assert decoding._asks_host_nothing(decoder.model)
        assert decoding._asks_host_nothing(ready(model, torch.float32)) == (kind != "experts")
        with pytest.raises(DataDependentOutputException):
            bool(decoder.state.ended.all())


# --- where rows end ---


def test_a_row_ends_with_a_stop_token_or_its_own_number_of_tokens() -> None:
    generator = Generator(made())
    whole = generator(PROMPTS, max_tokens=30, temperature=0)
    stop = whole[1][4]
    ended = generator(PROMPTS, max_tokens=[30, 30, 2], temperature=0, stop=[98, stop])
    for row, all_of_it, most in zip(ended, whole, (30, 30, 2), strict=True):
        ends = [i + 1 for i, token in enumerate(all_of_it) if token in (98, stop)]
        assert row == all_of_it[: min([*ends, most])]
    assert len(ended[1]) <= 5


def test_a_row_that_has_ended_stays_where_it_is_while_others_go_on() -> None:
    generator = Generator(made(seq_length=512))
    full = [1] * (2 * PLACES - 1)  # with one token more the cache's last place is taken
    assert [len(row) for row in generator([full, [2]], max_tokens=[1, 20], temperature=0)] == [1, 20]


def test_steps_end_when_all_rows_have(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    step = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self: (steps.append(1), step(self)))
    generator = Generator(made(seq_length=512))
    everything = range(99)
    assert [len(row) for row in generator(PROMPTS, max_tokens=300, stop=everything)] == [1, 1, 1]
    assert len(steps) < 50
    assert generator([], max_tokens=3) == []


# --- what is drawn ---


def drawn(logits: list[float], count: int = 20_000, **settings: Any) -> Tensor:
    """How often each token is drawn [V]."""
    wanted = Sampling(**settings)
    numbers = Settings(torch.device("cpu"))
    numbers.set(wanted, len(logits))
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(2))
    tokens = choose(torch.tensor(logits).expand(count, -1), uniform, numbers, wanted.how)
    return tokens.bincount(minlength=len(logits)) / count


LOGITS = [1.0, -2.0, 2.5, 0.0, 2.0]
"""As probabilities: 0.114, 0.006, 0.510, 0.042, 0.310 (and so 0.018 is missing here by rounding)."""


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"temperature": 0.5}, [0, 1, 2, 3, 4]),
        ({"temperature": 0}, [2]),
        ({"top_k": 1}, [2]),
        ({"top_k": 3}, [0, 2, 4]),
        ({"top_k": 50}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.4}, [2]),
        ({"top_p": 0.6}, [2, 4]),
        ({"top_p": 0.9}, [0, 2, 4]),
        ({"top_k": 2, "top_p": 0.6}, [2]),  # of those two it has 0.62
    ],
)
def test_tokens_are_drawn_by_their_probability_from_those_allowed(
    settings: dict[str, Any], kept: list[int]
) -> None:
    scaled = torch.tensor(LOGITS) / (settings.get("temperature", 1.0) or 1.0)
    left_out = torch.ones(5, dtype=torch.bool)
    left_out[kept] = False
    expected = scaled.masked_fill(left_out, -torch.inf).softmax(-1)
    found = drawn(LOGITS, **settings)
    assert not found[left_out].any()
    torch.testing.assert_close(found, expected, atol=0.012, rtol=0)  # 3.5 standard deviations


def test_no_rounding_leads_to_a_token_that_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # As if a parallel sum ended a little below the part of the whole that was drawn.
    monkeypatch.setattr(sampling, "_drawn", lambda shares, _: torch.full((len(shares),), shares.shape[1]))
    for settings, last in (({"top_k": 3}, 0), ({"top_p": 0.6}, 4), ({}, 4)):
        assert drawn(LOGITS, count=1, **settings)[last] == 1


def test_a_seed_means_a_text() -> None:
    generator = Generator(made())
    first = generator(PROMPTS, max_tokens=20, seed=1)
    assert generator(PROMPTS, max_tokens=20, seed=1) == first
    assert generator(PROMPTS, max_tokens=20, seed=2) != first
    assert [row[:20] for row in generator(PROMPTS, max_tokens=45, seed=1)] == first
    alike = generator([[1, 2]] * 4, max_tokens=20)
    assert len({tuple(row) for row in alike}) == 4  # rows are drawn apart


# --- weights ---


def test_bfloat16_gives_tokens_that_are_likeliest_in_float32_but_for_rounding() -> None:
    model = made(num_query_groups=2).eval()
    found = generate(model, PROMPTS, max_tokens=25, temperature=0, dtype=torch.bfloat16)
    assert {one.dtype for one in model.parameters()} == {torch.float32}
    for prompt, row in zip(PROMPTS, found, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + row]))[0, len(prompt) - 1 : -1]
        short = logits.max(-1).values - logits.gather(1, torch.tensor(row)[:, None])[:, 0]
        assert logits.std() > 0.5 and short.max() < 0.1


def test_weights_of_the_right_type_are_shared_and_others_converted_once() -> None:
    model = made(num_experts=2, tie_embeddings=True)
    assert {one.dtype for one in ready(model).parameters()} == {torch.float32}
    mine = dict(ready(model, torch.bfloat16).named_parameters())
    assert mine.pop("blocks.0.feed_forward.router.weight").dtype == torch.float32
    assert mine["embedding.weight"].dtype == torch.bfloat16
    model.to(torch.bfloat16)
    prepared = ready(model)
    assert prepared.dtype == torch.bfloat16 and model.dtype == torch.float32
    assert prepared.head is not None and prepared.embedding is not None
    assert prepared.head.weight.data_ptr() == prepared.embedding.weight.data_ptr()
    shared = dict(prepared.named_parameters())
    assert all(shared[name].data_ptr() == one.data_ptr() for name, one in model.named_parameters())
    model.dtype = torch.float16
    assert ready(model).dtype == torch.float16


def test_a_model_without_weights_or_with_a_part_of_them_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"no weights yet: model.materialize"):
        Generator(GPTModel(config()))
    part = made()
    part.keep(["0"], first=True, last=True)
    with pytest.raises(ConfigError, match=r"divided over ranks.*one device holds whole; export it"):
        Generator(part)


# --- what is refused ---


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        (
            [[1], [2] * 60],
            {"max_tokens": 5},
            r"prompts\[1\] has 60 tokens and max_tokens=5 .* 65, and seq_length=64",
        ),
        ([[1], []], {}, r"prompts\[1\] is empty"),
        ([[1, 99]], {}, r"prompts\[0\] has token 99, and vocab_size=99 .*0 to 98: is it another model's"),
        ([[-1]], {}, r"prompts\[0\] has token -1"),
        ([[1]], {"max_tokens": 0}, "max_tokens=0 must be at least 1"),
        ([[1]], {"max_tokens": [3, 4]}, "max_tokens has 2 numbers and there are 1 prompts"),
        ([[1]], {"temperature": -0.5}, r"temperature=-0.5 must be 0 \(the likeliest token\) or more"),
        ([[1]], {"top_k": -1}, "top_k=-1 must be 0"),
        ([[1]], {"top_p": 0.0}, "top_p=0.0 must be greater than 0 and at most 1"),
        ([[1]], {"top_p": 1.5}, "top_p=1.5"),
        ([[1]], {"stop": [100]}, "stop has token 100, and the model has 0 to 98"),
        ([[1]], {"mask": torch.ones(1, 1)}, "mask is for prompts that are a tensor"),
        (torch.ones(3, dtype=torch.int64), {}, r"prompts \[3\] must be \[rows, tokens\]"),
        (torch.ones(1, 3), {"mask": torch.ones(1, 2)}, r"prompts \[1, 3\] and mask \[1, 2\] must be"),
    ],
)
def test_what_cannot_be_generated_is_refused(prompts: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Generator(made())(prompts, **{"max_tokens": 4, **settings})


def test_without_a_compiler_steps_run_plainly_and_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(decoding, "_has_triton", lambda: False)
    decoding._say_once.cache_clear()
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    with caplog.at_level(logging.INFO):
        assert [decoding.compiles(gpu, None) for _ in range(2)] == [False, False]
        assert not decoding.compiles(cpu, None)
    assert ["Triton" in line for line in caplog.messages] == [True, False]
    assert decoding.compiles(cpu, True) and not decoding.compiles(gpu, False)
    with pytest.raises(ConfigError, match=r"compile=True needs Triton for this GPU: install triton"):
        decoding.compiles(gpu, True)
