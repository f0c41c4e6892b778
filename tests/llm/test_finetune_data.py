"""Fine-tuning data: what is learned, token by token; packing; one order for all ranks; exact positions."""

from __future__ import annotations

import json
import random
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemorun.errors import ConfigError
from nemorun.llm import FinetuneData, FinetuneDataConfig
from nemorun.llm.data import Prefetched, load_tokenizer
from nemorun.llm.data.chat import PLAIN, ChatTemplate, chat_template
from nemorun.llm.data.packing import Place, RowOrder, first_fit
from nemorun.training import TrainingError
from nemorun.training.batch import Batch
from nemorun.training.loss import IGNORE
from tests.llm.samples import Alone, make_tokenizer, write_lines

TALK = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "The capital of France?"},
        {"role": "assistant", "content": "Paris."},
        {"role": "user", "content": "And its river?"},
        {"role": "assistant", "content": "The Seine, naïvely 東京."},
    ]
}


@pytest.fixture
def config(tmp_path: Path, tokenizer_folder: Path) -> FinetuneDataConfig:
    """60 prompts, each of another length; the answer names its number."""
    chance = random.Random(1)
    records = [
        {"prompt": f"Say {n}. " + "please " * chance.randrange(12), "completion": f"It is {n}."}
        for n in range(60)
    ]
    return FinetuneDataConfig(
        train_data=write_lines(tmp_path / "train.jsonl", records),
        tokenizer=tokenizer_folder,
        global_batch_size=4,
        cache_dir=tmp_path / "cache",
        packing_window=16,
        val_fraction=0.1,
    )


def data_of(
    config: FinetuneDataConfig, rank: int = 0, world_size: int = 1, seq_length: int = 128
) -> FinetuneData:
    return FinetuneData(config, seq_length, Alone(rank, world_size))


def test_padding_is_marked(config: FinetuneDataConfig) -> None:
    batches = data_of(config, seq_length=256).next_step()
    for batch in batches:
        assert batch.padding is not None and batch.padding.any() and not batch.padding[:, 0].any()
        last = [int(row.nonzero()[0]) for row in batch.padding]
        for row, first in enumerate(last):
            assert batch.padding[row, first:].all() and (batch.labels[row, first:] == IGNORE).all()
            assert batch.positions is not None
            assert batch.positions[row, first] == 0 < batch.positions[row, first - 1]


def one_example(record: Any, folder: Path, tokenizer: Path | str, **changes: Any) -> tuple[str, str]:
    """The text of a single example, and that of its learned tokens with `_` for the others' places."""
    source = write_lines(folder / "one.jsonl", [record])
    config = FinetuneDataConfig(
        train_data=source,
        tokenizer=tokenizer,
        global_batch_size=1,
        val_fraction=0,
        cache_dir=folder,
        **changes,
    )
    data = data_of(config, seq_length=400)
    (batch,) = data.next_step()
    assert batch.positions is not None
    length = int((batch.positions[0][1:] == 0).int().argmax()) + 1  # where padding begins
    tokens, labels = batch.tokens[0][:length].tolist(), batch.labels[0][:length].tolist()
    decode = data.tokenizer.decode
    for token, label in zip(tokens[1:], labels, strict=False):
        assert label in (token, IGNORE)
    assert (batch.labels[0][length:] == IGNORE).all() and batch.positions[0].tolist() == [
        *range(length),
        *range(400 - length),
    ]
    assert labels[-1] != IGNORE or tokens[-1] != data.tokenizer.eos
    whole = tokens + [label for label in labels[-1:] if label != IGNORE]
    groups, learned = [], []
    for label in labels:
        if label == IGNORE and learned:
            groups.append(decode(learned))
            learned = []
        elif label != IGNORE:
            learned.append(label)
    return decode(whole), "_".join([*groups, decode(learned)] if learned else groups)


def test_answers_are_learned_with_the_marks_that_end_them(tokenizer_folder: Path, tmp_path: Path) -> None:
    text, learned = one_example(TALK, tmp_path, tokenizer_folder)
    assert text.startswith("<|begin|><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nThe capital")
    assert text.count("<|begin|>") == 1  # by the template, and not by the tokenizer as well
    assert learned == "Paris.<|im_end|>_The Seine, naïvely 東京.<|im_end|>"


def test_a_template_that_marks_answers_is_believed(tmp_path: Path) -> None:
    marked = (
        "{% for m in messages %}{% if m.role == 'assistant' %}A:\n{% generation %}{{ m.content }}"
        "<|endoftext|>{% endgeneration %}{% else %}Q: {{ m.content }} {% endif %}{% endfor %}"
    )
    folder = make_tokenizer(tmp_path / "tokenizer", marked)
    text, learned = one_example(TALK, tmp_path, folder)
    assert text.startswith("Q: Be brief. Q: The capital of France? A:\nParis.<|endoftext|>Q: And")
    assert learned == "Paris.<|endoftext|>_The Seine, naïvely 東京.<|endoftext|>"


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_the_plain_template_is_taken_where_there_is_none(tmp_path: Path, kind: str) -> None:
    tokenizer: Path | str = "bytes" if kind == "bytes" else make_tokenizer(tmp_path / "plain", None)
    end = "<|end|>" if kind == "bytes" else "<|endoftext|>"
    text, learned = one_example(TALK, tmp_path, tokenizer)
    assert text.removeprefix("<|begin|>") == (
        "### System:\nBe brief.\n\n### User:\nThe capital of France?\n\n### Assistant:\nParis." + end + "\n\n"
        "### User:\nAnd its river?\n\n### Assistant:\nThe Seine, naïvely 東京." + end
    )
    assert text.startswith("<|begin|>") == (kind == "bpe")  # as the tokenizer starts any text
    assert learned == f"Paris.{end}_The Seine, naïvely 東京.{end}"


@pytest.mark.parametrize(
    ("record", "prompt", "answer"),
    [
        ({"prompt": "a b", "completion": "c"}, "### User:\na b", "c"),
        ({"input": "a b", "output": "c"}, "### User:\na b", "c"),
        ({"instruction": "do", "input": "this", "output": "c"}, "### User:\ndo\n\nthis", "c"),
        ({"instruction": "do", "context": "this", "response": "c"}, "### User:\ndo\n\nthis", "c"),
        ({"instruction": "do", "input": "", "output": "c"}, "### User:\ndo\n\n### A", "c"),
        ({"system": "s", "prompt": "p", "completion": "c"}, "### System:\ns\n\n### User:\np", "c"),
        (
            {
                "prompt": [{"role": "user", "content": "p"}],
                "completion": [{"role": "assistant", "content": "c"}],
            },
            "### User:\np",
            "c",
        ),
        (
            {"conversations": [{"from": "human", "value": "p"}, {"from": "gpt", "value": "c"}]},
            "### User:\np",
            "c",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "p"}]}, TALK["messages"][2]]},
            "### User:\np",
            "Paris.",
        ),
    ],
)
def test_each_form_of_a_line(record: Any, prompt: str, answer: str, tmp_path: Path) -> None:
    text, learned = one_example(record, tmp_path, "bytes")
    assert text.startswith(prompt) and text.endswith(f"### Assistant:\n{answer}<|end|>")
    assert learned == f"{answer}<|end|>"


def test_a_text_is_learned_whole_and_so_is_all_where_that_is_wanted(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    text, learned = one_example({"text": "The fox.<|im_end|>"}, tmp_path, tokenizer_folder)
    assert text == "<|begin|>The fox.<|im_end|><|endoftext|>"
    assert learned == "The fox.<|im_end|><|endoftext|>"
    text, learned = one_example(TALK, tmp_path, tokenizer_folder, train_on="all")
    assert text == f"<|begin|>{learned}"
    text, learned = one_example(TALK, tmp_path, "bytes", train_on="all")
    assert text == f"#{learned}" and learned.count("<|end|>") == 2


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    own = "{% for m in messages %}{{ m.content }}{% endfor %}"
    text, learned = one_example({"prompt": "2+2=", "completion": "4\n"}, tmp_path, "bytes", chat_template=own)
    assert (text, learned) == ("2+2=4", "4")
    (tmp_path / "own.jinja").write_text(own)
    record = {"prompt": "p", "completion": "c"}
    assert one_example(record, tmp_path, "bytes", chat_template=tmp_path / "own.jinja") == ("pc", "c")
    for wrong, message in (
        ("{% if", "is no Jinja template: line 1"),
        ("nowhere", "neither a template nor a file"),
    ):
        with pytest.raises(TrainingError, match=message):
            chat_template(wrong, load_tokenizer("bytes"))


def test_a_template_cannot_reach_out_of_its_sandbox() -> None:
    source = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(ValueError, match=r"refuses the conversation: .*unsafe"):
        ChatTemplate(source, {}, "template").render(TALK["messages"])


def test_a_template_that_asks_for_the_day_gets_the_same_each_day(tmp_path: Path) -> None:
    own = "{{ strftime_now('%d %b %Y') }}: {% for m in messages %}{{ m.content }}{% endfor %}"
    record = {"prompt": "p", "completion": "c"}
    assert one_example(record, tmp_path, "bytes", chat_template=own) == ("26 Jul 2024: pc", "c")


def test_a_template_that_rewrites_earlier_turns_is_refused_line_by_line() -> None:
    source = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match=r"writes messages\[2\] otherwise .*generation.*train_on=all"):
        ChatTemplate(source, {}, "template").render(TALK["messages"])


def test_the_prompt_of_the_plain_template_is_what_its_answer_follows() -> None:
    template = chat_template(None, load_tokenizer("bytes"))
    text, answers = template.render(TALK["messages"])
    prompt = template.prompt(TALK["messages"][:-1])
    assert text.startswith(prompt) and len(prompt) == answers[-1][0]
    assert template.source == PLAIN


BAD = {
    '{"messages": []}': "'messages' is no list of turns",
    '{"messages": [{"content": "x"}]}': r"messages\[0\] is no object with a 'role'",
    '{"messages": [{"role": "user", "content": 3}]}': r"messages\[0\].content is no text but int",
    '{"messages": [{"role": "user", "content": "x"}]}': "no turn has the role 'assistant'",
    '{"messages": [{"role": "user", "content": [{"type": "image"}]}]}': "a part that is no text",
    '{"prompt": "x"}': "no known form: the fields are 'prompt'",
    '{"prompt": "x", "completion": null}': "completion is no text but NoneType",
    '{"text": ""}': "'text' is empty",
    "nonsense": "no JSON",
}


def test_each_bad_line_is_named_and_left_out(
    config: FinetuneDataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.train_data = tmp_path / "bad.jsonl"
    good = '{"prompt": "p", "completion": "c"}\n'
    config.train_data.write_text(good + "".join(f"{line}\n" for line in BAD) + good)
    config.val_fraction = 0
    data = data_of(config)
    assert "2 examples to train on" in str(data)
    assert f"warning: {len(BAD)} bad lines left out: {config.train_data}:2:" in capsys.readouterr().out
    config.skip_bad = 2
    with pytest.raises(TrainingError) as error:
        data_of(config)
    for number, reason in enumerate(BAD.values(), start=2):
        assert f"bad.jsonl:{number}: " in str(error.value)
        with pytest.raises(TrainingError, match=reason):
            raise error.value


def test_a_plain_text_is_no_examples(config: FinetuneDataConfig, tmp_path: Path) -> None:
    config.train_data = tmp_path / "a.txt"
    config.train_data.write_text("words")
    with pytest.raises(TrainingError, match=r"a.txt: examples are lines of JSON"):
        data_of(config)
    config.train_data = tmp_path / "folder"
    config.train_data.mkdir()
    with pytest.raises(TrainingError, match=r"data.train_data=.*without any .jsonl file"):
        data_of(config)


def test_long_examples_are_cut_and_counted(config: FinetuneDataConfig, tmp_path: Path) -> None:
    records = [{"prompt": "p" * n, "completion": "c" * 30} for n in (1, 20, 90)]
    config.train_data = write_lines(tmp_path / "long.jsonl", records)
    config.tokenizer, config.val_fraction, config.packing = "bytes", 0, False
    data = data_of(config, seq_length=60)  # 29 bytes are the template's
    assert "2 examples to train on" in str(data) and "1 examples are longer and are cut at 60 tokens" in str(
        data
    )
    assert "1 more are left out: nothing to learn is within 60 tokens" in str(data)
    for batch in data.next_step():
        assert batch.tokens.shape == (1, 60)
        assert (batch.labels != IGNORE).any()
    with pytest.raises(TrainingError, match="no example to train on: 3 have nothing to learn within"):
        data_of(config, seq_length=20)


def examples_in(batches: list[Batch], data: FinetuneData) -> list[list[str]]:
    """The texts of each row, cut where positions restart; padding aside."""
    found = []
    for batch in batches:
        assert batch.positions is not None
        assert batch.tokens.shape == batch.labels.shape == batch.positions.shape
        for tokens, labels, places in zip(batch.tokens, batch.labels, batch.positions, strict=True):
            starts = [*(places == 0).nonzero().flatten().tolist(), len(places)]
            row = []
            for a, b in pairwise(starts):
                assert places[a:b].tolist() == list(range(b - a))
                if (tokens[a:b] != data.tokenizer.eos).any():
                    assert (labels[a:b] != IGNORE).any()
                    row.append(data.tokenizer.decode(tokens[a:b].tolist()))
                else:
                    assert (labels[a:b] == IGNORE).all()
            found.append(row)
    return found


@pytest.mark.parametrize("packing", [True, False])
def test_each_example_is_whole_in_one_row_and_once_an_epoch(
    config: FinetuneDataConfig, packing: bool
) -> None:
    config.packing, config.global_batch_size = packing, 1
    data = data_of(config, seq_length=256)
    for epoch in range(3):
        rows = [row for _ in range(data._order.count(epoch)) for row in examples_in(data.next_step(), data)]
        numbers = [int(text.split("Say ")[1].split(".")[0]) for row in rows for text in row]
        assert len(numbers) == len(set(numbers)) == 54
        assert all(text.startswith("<|begin|>") and text.count("It is") == 1 for row in rows for text in row)
        assert (max(map(len, rows)) > 1) == packing
        if packing:
            assert len(rows) < 54 / 1.8
    kept = {text for row in examples_in(data.validation(99), data) for text in row}
    assert len(kept) == 6 and not kept & {text for row in rows for text in row}


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 60))
def test_first_fit_loses_and_splits_nothing(lengths: list[int], room: int) -> None:
    rows = first_fit(lengths, room)
    assert sorted(place for row in rows for place in row) == list(range(len(lengths)))
    used = [sum(min(lengths[place], room) for place in row) for row in rows]
    assert max(used) <= room
    # never two rows that are both at most half full
    assert sum(2 * one <= room for one in used) <= 1


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=80),
    st.integers(0, 20),
    st.integers(0, 9),
    st.integers(1, 40),
)
@settings(max_examples=50)
def test_rows_go_on_from_any_place(lengths: list[int], window: int, seed: int, count: int) -> None:
    order = RowOrder(torch.tensor(lengths).numpy(), 40, window, seed)
    rows = list(islice(order.after(Place()), 2 * count))
    _, place = rows[count - 1]
    assert [row for row, _ in islice(order.after(place), count)] == [row for row, _ in rows[count:]]
    epoch = [row for row, _ in islice(order.after(Place()), order.count(0))]
    assert sorted(example for row in epoch for example in row) == list(range(len(lengths)))


@pytest.mark.parametrize("packing", [True, False])
def test_the_order_does_not_depend_on_the_number_of_ranks(config: FinetuneDataConfig, packing: bool) -> None:
    config.packing, config.micro_batch_size, config.global_batch_size = packing, 2, 8

    def run(world: int) -> list[Any]:
        ranks = [data_of(config, rank, world) for rank in range(world)]
        found = []
        for _ in range(12):
            shares = [rank.next_step() for rank in ranks]
            assert {tuple(batch.tokens.shape) for share in shares for batch in share} == {(2, 128)}
            turns = [batch for turn in zip(*shares, strict=True) for batch in turn]
            found.append([batch.tokens.tolist() for batch in turns])
        assert {len(rank.validation(1)) for rank in ranks} == {8 // 2 // world}
        return found

    assert run(1) == run(2) == run(4)


@pytest.mark.parametrize("packing", [True, False])
def test_a_run_resumes_exactly_at_every_step_and_twice(config: FinetuneDataConfig, packing: bool) -> None:
    config.packing = packing

    def texts(data: Any, count: int) -> list[Any]:
        return [[batch.tokens.tolist() for batch in data.next_step()] for _ in range(count)]

    expected = texts(data_of(config), 40)
    data = data_of(config)
    states = [json.loads(json.dumps(data.state()))]
    for _ in range(40):
        data.next_step()
        states.append(json.loads(json.dumps(data.state())))
    assert states[-1]["epoch"] >= 2
    again = data_of(config)
    for step in range(38):
        again.restore(states[step])
        assert texts(again, 1) == expected[step : step + 1]
        saved = json.loads(json.dumps(again.state()))
        assert saved == states[step + 1]
        again.restore(saved)
        assert texts(again, 1) == expected[step + 1 : step + 2]
    half = [data_of(config, rank, 2) for rank in range(2)]
    for one in half:
        one.restore(states[21])
    shares = [one.next_step() for one in half]
    assert [batch.tokens.tolist() for turn in zip(*shares, strict=True) for batch in turn] == expected[21]
    ahead = Prefetched(data_of(config), 3)
    assert texts(ahead, 5) == expected[:5] and ahead.state() == states[5]
    ahead.close()


def test_other_examples_are_said(config: FinetuneDataConfig, capsys: pytest.CaptureFixture[str]) -> None:
    data = data_of(config)
    while data.state()["epoch"] < 1:
        data.next_step()
    state = data.state()
    config.seed = 9
    other = data_of(config)
    other.restore(state)
    assert "goes on at the start of epoch 2" in capsys.readouterr().out
    assert (other.state()["epoch"], other.state()["row"]) == (1, 0)
    with pytest.raises(TrainingError, match="of another kind of data"):
        other.restore({"samples": 3})


def test_the_steps_of_some_epochs(config: FinetuneDataConfig) -> None:
    config.packing = False
    data = data_of(config)
    assert (data.steps(1), data.steps(2), data.steps(0.5)) == (14, 27, 7)  # 54 rows, 4 a step
    assert "an epoch is 54 rows" in str(data)
    config.packing, config.packing_window = True, 2  # more windows than are looked at
    rows = data_of(config)._order.count(0)
    about = int(str(data_of(config)).split("about ")[1].split()[0])
    assert about == pytest.approx(rows, rel=0.3)


def test_validation_data_of_its_own(config: FinetuneDataConfig, tmp_path: Path) -> None:
    config.val_data = write_lines(tmp_path / "val.jsonl", [{"prompt": "Say 99.", "completion": "It is 99."}])
    data = data_of(config)
    assert "60 examples to train on, 1 to validate on" in str(data)
    batches = data.validation(3)
    assert len(batches) == 4  # one global batch, padded
    assert [len(row) for row in examples_in(batches, data)] == [1, 0, 0, 0]
    assert "99" in examples_in(batches, data)[0][0]
    assert data.validation(0) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "train_data is not set"),
        ({"train_data": "x", "packing_window": 0}, "packing_window=0 must be at least 1"),
        ({"train_data": "x", "val_fraction": 1.0}, "val_fraction=1.0"),
        ({"train_data": "x", "global_batch_size": 3, "micro_batch_size": 2}, "is not divisible by"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FinetuneDataConfig(**changes).validate()
