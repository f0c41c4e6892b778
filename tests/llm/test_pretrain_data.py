"""Pre-training data: every window once an epoch, the same for any number of ranks, an exact position."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemorun.config import Config, loads
from nemorun.config.overrides import apply
from nemorun.errors import ConfigError
from nemorun.llm import DataConfig, PretrainData
from nemorun.llm.data import END, load_tokenizer, tokenize
from nemorun.llm.data.blend import Blend
from nemorun.llm.data.encoders import DocumentEncoder
from nemorun.llm.data.shuffle import Shuffle
from nemorun.llm.data.stream import split
from nemorun.llm.data.token_files import open_tokens
from nemorun.training import TrainingError
from nemorun.training.batch import Batch
from nemorun.training.loss import IGNORE
from tests.llm.samples import Alone, write_lines


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """Six documents, whose bytes say which they are; two more sources with another letter each."""
    for source in "abc":
        (tmp_path / source).mkdir()
        for number in range(6):
            text = "".join(f"{source}{number}.{at:02} " for at in range(20 + number))
            (tmp_path / source / f"{number}.txt").write_text(text)
    return DataConfig(
        path=tmp_path / "a",
        global_batch_size=4,
        micro_batch_size=1,
        cache_dir=tmp_path / "cache",
        val_fraction=0.2,
    )


def data_of(config: DataConfig, rank: int = 0, world_size: int = 1, seq_length: int = 10) -> PretrainData:
    return PretrainData(config, seq_length, Alone(rank, world_size))


def rows(batches: list[Batch]) -> list[list[list[int]]]:
    """Every row of the micro-batches: tokens, labels, and positions where there are any."""
    found = []
    for batch in batches:
        assert batch.tokens.dtype == batch.labels.dtype == torch.int64
        parts = [batch.tokens, batch.labels] + ([] if batch.positions is None else [batch.positions])
        found += [list(row) for row in zip(*(part.tolist() for part in parts), strict=True)]
    return found


def steps(data: PretrainData, count: int) -> list[list[list[list[int]]]]:
    return [rows(data.next_step()) for _ in range(count)]


def train_text(config: DataConfig) -> list[int]:
    """The training part of the only source."""
    stream = data_of(config)._train[0]
    return [token for a, b in stream._places(0, len(stream)) for token in stream.files.tokens[a:b].tolist()]


def test_documents_are_whole_and_on_one_side(config: DataConfig) -> None:
    stream, kept = data_of(config)._train[0], data_of(config)._val[0]
    assert len(stream) + len(kept) == len(stream.files.tokens)
    train = bytes(token if token != END else 0 for token in train_text(config)).split(b"\0")[:-1]
    texts = {file.read_bytes() for file in Path(str(config.path)).iterdir()}
    assert len(train) == 5 and set(train) < texts
    (left,) = texts - set(train)
    assert len(kept) == len(left) + 1


def test_labels_are_the_tokens_that_follow_and_an_epoch_takes_each_window_once(config: DataConfig) -> None:
    train = train_text(config)
    windows = (len(train) - 1) // 10
    found = [row for step in steps(data_of(config), 3 * windows // 4 + 1) for row in step][: 3 * windows]
    expected = sorted([train[i * 10 : i * 10 + 10], train[i * 10 + 1 : i * 10 + 11]] for i in range(windows))
    epochs = [found[e * windows : (e + 1) * windows] for e in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [expected] * 3
    assert epochs[0] != epochs[1] != epochs[2] != expected
    other = DataConfig(**{**vars(config), "seed": 1})
    assert steps(data_of(other), 2) != steps(data_of(config), 2)


@pytest.mark.parametrize("path", [["a"], ["a", "b"], {"a": 0.6, "b": 0.3, "c": 0.1}])
@pytest.mark.parametrize("micro", [1, 2])
def test_the_order_does_not_depend_on_the_number_of_ranks(
    config: DataConfig, tmp_path: Path, path: Any, micro: int
) -> None:
    config.micro_batch_size, config.global_batch_size = micro, 8
    config.path = at(tmp_path, path)

    def run(world: int) -> list[list[list[list[int]]]]:
        ranks = [data_of(config, rank, world) for rank in range(world)]
        found = []
        for _ in range(30):
            shares = [rank.next_step() for rank in ranks]
            assert {tuple(batch.tokens.shape) for share in shares for batch in share} == {(micro, 10)}
            # the micro-batches of all ranks, in turn, are the global batch in its order
            found.append(rows([batch for turn in zip(*shares, strict=True) for batch in turn]))
        return found

    assert run(1) == run(2) == run(4)


def at(folder: Path, path: Any) -> Any:
    if isinstance(path, dict):
        return {str(folder / name): weight for name, weight in path.items()}
    return [folder / name for name in path]


@pytest.mark.parametrize("path", [["a"], {"a": 0.6, "b": 0.3, "c": 0.1}])
def test_a_run_resumes_exactly_at_every_step_and_twice(config: DataConfig, tmp_path: Path, path: Any) -> None:
    config.path = at(tmp_path, path)
    expected = steps(data_of(config), 60)  # several epochs
    data = data_of(config)
    states = [json.loads(json.dumps(data.state()))]
    for _ in range(60):
        data.next_step()
        states.append(json.loads(json.dumps(data.state())))
    for step in range(0, 58):
        again = data_of(config)
        again.restore(states[step])
        assert steps(again, 1) == expected[step : step + 1]
        twice = data_of(config)
        twice.restore(json.loads(json.dumps(again.state())))
        assert steps(twice, 2) == expected[step + 1 : step + 3]
        assert twice.state() == states[step + 3] if step < 57 else True
    half = [data_of(config, rank, 2) for rank in range(2)]
    for one in half:
        one.restore(states[31])
    shares = [one.next_step() for one in half]
    assert rows([batch for turn in zip(*shares, strict=True) for batch in turn]) == expected[31]


def test_other_data_is_said_and_what_is_still_there_goes_on(
    config: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.path = at(tmp_path, ["a", "b"])
    data = data_of(config)
    steps(data, 7)
    config.path = at(tmp_path, {"b": 1.0, "c": 1.0})
    other = data_of(config)
    other.restore(data.state())
    assert "trained on other data (sources, weights differ)" in capsys.readouterr().out
    assert other.samples == 28 and other._taken == [data._taken[1], 0]
    steps(other, 2)
    assert other._taken == [data._taken[1] + 4, 4]
    with pytest.raises(TrainingError, match="of another kind of data"):
        other.restore({"samples": 3})


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=9), st.integers(1, 400))
@settings(max_examples=80)
def test_each_source_has_its_share_of_every_prefix(weights: list[float], turns: int) -> None:
    blend = Blend(weights)
    for turn in range(1, turns + 1):
        blend.next()
        for weight, count in zip(weights, blend.counts, strict=True):
            assert abs(count - turn * weight / sum(weights)) < 1 + 1e-6


def test_weights_are_the_shares_of_the_batches(config: DataConfig, tmp_path: Path) -> None:
    config.path = at(tmp_path, {"a": 6, "b": 3, "c": 1})
    config.global_batch_size = 10
    for step in steps(data_of(config), 12):
        letters = [chr(next(t for t in row[0] if chr(t) in "abc")) for row in step]
        assert sorted(letters) == list("aaaaaabbbc")


def test_a_list_takes_each_source_once_an_epoch(config: DataConfig, tmp_path: Path) -> None:
    config.path = at(tmp_path, ["a", "b", "c"])
    config.global_batch_size = config.micro_batch_size = 1
    data = data_of(config)
    windows = [stream.whole_windows for stream in data._train]
    found = [step[0][0] for step in steps(data, sum(windows))]
    assert data._taken == windows
    assert len({tuple(row) for row in found}) == sum(windows)


@given(st.integers(1, 600), st.integers(0, 2**70), st.integers(0, 5))
@settings(max_examples=60)
def test_a_shuffle_has_every_place_once(size: int, seed: int, epoch: int) -> None:
    shuffle = Shuffle(size, seed, epoch)
    order = [shuffle[place] for place in range(size)]
    assert sorted(order) == list(range(size))
    if size > 50:
        assert order != [Shuffle(size, seed, epoch + 1)[place] for place in range(size)]
        assert order != [Shuffle(size, seed + 1, epoch)[place] for place in range(size)]


def test_a_shuffle_is_even() -> None:
    """Where each place ends, over many seeds: chi-squared with 99 degrees of freedom is below 160."""
    for place in (0, 1, 50, 99):
        counts = [0] * 100
        for seed in range(5000):
            counts[Shuffle(100, seed, 0)[place]] += 1
        assert sum((count - 50) ** 2 / 50 for count in counts) < 160


def test_positions_restart_with_each_document_where_that_is_wanted(config: DataConfig) -> None:
    config.reset_positions = True
    plain = DataConfig(**{**vars(config), "reset_positions": False})
    seen = 0
    both = [steps(data_of(one, seq_length=50), 30) for one in (config, plain)]
    for step, same in zip(*both, strict=True):
        for (tokens, labels, places), (plain_tokens, plain_labels) in zip(step, same, strict=True):
            assert tokens == plain_tokens
            expected, at = [], 0
            for i, token in enumerate(tokens):
                expected.append(at)
                at = 0 if token == END else at + 1
                seen += token == END
                assert labels[i] == (IGNORE if token == END else plain_labels[i])
            assert places == expected
    assert seen > 20


def test_validation_covers_the_whole_text_and_pads_its_end(config: DataConfig, tmp_path: Path) -> None:
    kept = len(data_of(config)._val[0])
    shares = [data_of(config, rank, 2).validation(100) for rank in range(2)]
    assert len(shares[0]) == len(shares[1])  # else one rank would wait for the other for ever
    labels = torch.cat([batch.labels.flatten() for share in shares for batch in share])
    assert int((labels != IGNORE).sum()) == kept - 1  # every token but the first
    assert data_of(config).validation(0) == []
    config.val_path = at(tmp_path, ["b", "c"])
    data = data_of(config)
    assert len(data._train[0]) == len(data._train[0].files.tokens)  # nothing is kept
    assert sum(map(len, data._val)) == sum(
        len(file.read_bytes()) + 1 for folder in "bc" for file in (tmp_path / folder).iterdir()
    )
    letters = {chr(t) for row in rows(data.validation(10**6)) for t in row[0]}
    assert letters >= {"b", "c"} and "a" not in letters
    config.val_path, config.val_fraction = None, 0
    assert data_of(config).validation(5) == []


def test_the_end_of_a_single_document_is_kept_for_validation(config: DataConfig, tmp_path: Path) -> None:
    config.path = tmp_path / "one.txt"
    config.path.write_bytes(bytes(range(200)))
    config.val_fraction = 0.1
    data = data_of(config)
    assert train_text(config) == list(range(180))
    assert [t for row in rows(data.validation(9)) for t in row[1] if t != IGNORE] == [*range(181, 200), END]


@given(st.integers(2, 3000), st.floats(0.001, 0.6))
@settings(max_examples=40)
def test_the_parts_are_disjoint_and_have_their_size(count: int, fraction: float) -> None:
    class Files:
        documents = torch.arange(0, 3 * count + 1, 3).numpy()

    Files.count = count  # type: ignore[attr-defined]
    train, val = split(Files(), fraction)  # type: ignore[arg-type]
    sizes = [int((part[:, 1] - part[:, 0]).sum()) for part in (train, val)]
    assert sum(sizes) == 3 * count and min(sizes) >= 3
    assert sizes[1] == pytest.approx(3 * count * fraction, rel=0.1, abs=3.5)
    both = sorted((int(a), int(b)) for part in (train, val) for a, b in part)
    assert all(b == c for (_, b), (c, _) in pairwise(both))


def test_tokenised_folders_and_raw_text_are_blended(
    config: DataConfig, tmp_path: Path, tokenizer_folder: Path
) -> None:
    encoder = DocumentEncoder(load_tokenizer(tokenizer_folder))
    tokenize([tmp_path / "a"], tmp_path / "tokens", encoder)
    config.path = tmp_path / "tokens"
    data = data_of(config)
    assert data.tokenizer.fingerprint == encoder.tokenizer.fingerprint  # what is there says what it is
    assert data.tokenizer.decode(steps(data, 1)[0][0][0]).count(".") > 0
    config.path = at(tmp_path, {"tokens": 1, "b": 1})
    with pytest.raises(TrainingError, match=r"was made with the tokenizer bytes, and not with .*chatml"):
        data_of(config)
    config.tokenizer = tokenizer_folder
    assert len(data_of(config)._train) == 2
    config.tokenizer = "bytes"
    with pytest.raises(TrainingError, match=r"made with the tokenizer .*chatml, and not with bytes"):
        data_of(config)


def test_a_model_with_too_few_tokens_is_refused(config: DataConfig) -> None:
    with pytest.raises(TrainingError, match=r"has 257 tokens .* set model.vocab_size=257"):
        PretrainData(config, 10, Alone(), vocab_size=256)


def test_ranks_of_one_model_read_the_same(config: DataConfig) -> None:
    found = [
        rows(PretrainData(config, 10, Alone(rank, 4), data_rank=rank // 2, data_ranks=2).next_step())
        for rank in range(4)
    ]
    assert found[0] == found[1] != found[2] == found[3]


def test_bad_lines_are_left_out_and_said_each_time(
    config: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"text": "some words. " * 9}
    config.path = write_lines(tmp_path / "lines.jsonl", [good, "bad", good, {"txt": 1}])
    for _ in range(2):
        data_of(config)
        said = capsys.readouterr().out
        assert "warning: 2 bad lines left out:" in said and "lines.jsonl:2: a JSON object" in said
    data_of(config, rank=1, world_size=2)
    assert not capsys.readouterr().out
    config.skip_bad = 1
    with pytest.raises(TrainingError, match=r"2 bad lines, 2 good; skip_bad=1"):
        data_of(config)
    config.path = write_lines(tmp_path / "none.jsonl", ["bad"])
    with pytest.raises(TrainingError, match=r"1 bad line, 0 good"):
        data_of(config)


def test_where_the_first_rank_fails_the_others_end_too(config: DataConfig, tmp_path: Path) -> None:
    class Told(Alone):
        def all(self, true: bool) -> bool:
            return False  # the first has failed

    config.path = tmp_path / "nowhere"
    with pytest.raises(TrainingError, match="does not exist"):
        PretrainData(config, 10, Told(0, 2))
    with pytest.raises(TrainingError, match="rank 0 says why"):
        PretrainData(config, 10, Told(1, 2))


@pytest.mark.parametrize(("path", "message"), [("nowhere", "does not exist"), ("empty", "without any file")])
def test_a_path_without_text_is_refused(config: DataConfig, tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    config.path = tmp_path / path
    with pytest.raises(TrainingError, match=f"data.path=.*{message}"):
        data_of(config)


def test_a_text_shorter_than_a_sequence_is_refused(config: DataConfig) -> None:
    with pytest.raises(TrainingError, match=r"not one sequence of data.seq_length=4096"):
        data_of(config, seq_length=4096)


def test_a_cache_that_cannot_be_made_is_a_sentence(config: DataConfig, tmp_path: Path) -> None:
    config.cache_dir = tmp_path / "file"
    config.cache_dir.write_text("not a folder")
    with pytest.raises(TrainingError, match=r"could not be cached: .*NEMORUN_CACHE_DIR"):
        data_of(config)


def test_many_processes_make_one_cache(config: DataConfig, tmp_path: Path) -> None:
    code = (
        "import sys; from nemorun.llm import DataConfig, PretrainData; from tests.llm.samples import Alone;"
        "sys.stdin.read(1);"
        "config = DataConfig(path=sys.argv[1], cache_dir=sys.argv[2]);"
        "print(PretrainData(config, 10, Alone())._train[0].files.folder)"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(config.path), str(tmp_path / "cache")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for _ in range(3)
    ]
    # They have imported what they need when they read; then all go at once.
    answers = {process.communicate("x", timeout=300)[0].strip() for process in started}
    assert [process.returncode for process in started] == [0, 0, 0]
    assert [str(path) for path in (tmp_path / "cache").iterdir()] == list(answers)
    assert open_tokens(next(iter(answers))).count == 6


def test_sources_are_written_on_the_command_line_and_in_yaml() -> None:
    config = Config(DataConfig)
    for text, wanted in (
        ("path=corpus", "corpus"),
        ("path=[a, b]", ["a", "b"]),
        ("path={a: 0.7, /data/b: 0.3}", {"a": 0.7, "/data/b": 0.3}),
        ("path=None", None),
    ):
        apply(config, [text])
        found = config.build().path
        found = [str(one) for one in found] if isinstance(found, list) else found
        assert (str(found) if isinstance(found, Path) else found) == wanted
    written = "_target_: nemorun.llm.DataConfig\npath: {a: 0.7, b: 0.3}\n"
    assert loads(written).build().path == {"a": 0.7, "b": 0.3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": []}, "names no source"),
        ({"path": {"a": 0.0}}, "gives 'a' the weight 0.0"),
        ({"path": {"a": float("nan")}}, "the weight nan"),
        ({"skip_bad": -1}, "skip_bad=-1 must be at least 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataConfig(**changes).validate()
