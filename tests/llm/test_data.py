"""Text data: every window once an epoch, the same for any number of ranks, an exact position, one cache."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nemorun.llm import DataConfig, TextData
from nemorun.llm.data import END, make_cache
from nemorun.training import TrainingError
from nemorun.training.distributed import Ranks
from nemorun.training.loss import IGNORE


class Alone(Ranks):
    """A rank by itself, of a world that is only said to be there."""

    def all(self, true: bool) -> bool:
        return true


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(6):
        (corpus / f"{number}.txt").write_text(f"{number}" * (100 + number))
    return DataConfig(
        path=corpus, global_batch_size=4, micro_batch_size=2, cache_dir=tmp_path / "cache", val_fraction=0.01
    )


def data_of(config: DataConfig, rank: int = 0, world_size: int = 1, seq_length: int = 10) -> TextData:
    return TextData(config, seq_length, Alone(rank, world_size, torch.device("cpu")))


def text(folder: Path, name: str) -> list[int]:
    return np.fromfile(folder / name, dtype=np.uint16).tolist()


def test_documents_are_whole_and_end_with_their_mark(config: DataConfig) -> None:
    folder = make_cache(config)
    train, val = text(folder, "train.bin"), text(folder, "val.bin")
    assert val == [ord("5")] * 105 + [END]  # too few for chance: the last is taken
    assert train == [t for n in range(5) for t in [ord(str(n))] * (100 + n) + [END]]


def test_labels_are_the_tokens_that_follow_and_an_epoch_takes_each_window_once(config: DataConfig) -> None:
    data = data_of(config)
    train = text(make_cache(config), "train.bin")
    windows = (len(train) - 1) // 10
    steps = 3 * windows // 4  # three epochs
    samples = [
        sample for _ in range(steps) for batch in data.next_step() for sample in zip(*batch, strict=True)
    ]
    seen = [tuple(t.tolist()) for t, _ in samples]
    for tokens, labels in samples:
        assert torch.equal(tokens[1:], labels[:-1])
    expected = sorted(tuple(train[i * 10 : i * 10 + 10]) for i in range(windows))
    assert sorted(seen[:windows]) == sorted(seen[windows : 2 * windows]) == expected
    assert seen[:windows] != seen[windows : 2 * windows]


def test_global_batches_do_not_depend_on_the_number_of_ranks(config: DataConfig) -> None:
    def global_batch(world_size: int) -> list[list[int]]:
        ranks = [data_of(config, rank, world_size) for rank in range(world_size)]
        shares = [rank.next_step() for rank in ranks]
        return sorted(row for share in shares for tokens, _ in share for row in tokens.tolist())

    assert global_batch(1) == global_batch(2)
    assert len(global_batch(1)) == 4


def test_a_restored_position_goes_on_exactly_over_an_epoch_too(config: DataConfig) -> None:
    whole, first = data_of(config), data_of(config)
    expected = [whole.next_step() for _ in range(40)]
    for _ in range(17):
        first.next_step()
    again = data_of(config)
    again.restore(json.loads(json.dumps(first.state())))
    for batches in expected[17:]:
        for (tokens, labels), (same, same_labels) in zip(batches, again.next_step(), strict=True):
            assert torch.equal(tokens, same) and torch.equal(labels, same_labels)


def test_validation_covers_the_whole_text_and_pads_its_end(config: DataConfig) -> None:
    shares = [data_of(config, rank, 2).validation(100) for rank in range(2)]
    assert len(shares[0]) == len(shares[1])  # else one rank would wait for the other for ever
    labels = torch.cat([labels.flatten() for share in shares for _, labels in share])
    assert int((labels != IGNORE).sum()) == 105  # every token but the first
    assert data_of(config).validation(0) == []


def test_json_lines_are_documents_and_a_bad_one_is_named(config: DataConfig, tmp_path: Path) -> None:
    config.path = tmp_path / "train.jsonl"
    config.path.write_text('\ufeff{"text": "über"}\n\n{"text": "b"}\n', encoding="utf-8")
    folder = make_cache(config)
    assert bytes(text(folder, "train.bin")[:-1]).decode() == "über"
    for bad in (b'{"txt": "b"}', b'{"text": b}', b'{"text": 1}', b'{"text": "caf\xe9"}', b"[1]"):
        config.path.write_bytes(b'{"text": "a"}\n' + bad + b"\n")
        with pytest.raises(TrainingError, match=r"train.jsonl, line 2: .*'text'"):
            make_cache(config)


def test_the_end_of_a_single_document_is_kept_for_validation(config: DataConfig, tmp_path: Path) -> None:
    config.path = tmp_path / "one.txt"
    config.path.write_bytes(bytes(range(200)))
    config.val_fraction = 0.1
    folder = make_cache(config)
    assert text(folder, "train.bin") == list(range(180))
    assert text(folder, "val.bin") == [*range(180, 200), END]


def test_a_cache_that_cannot_be_made_is_a_sentence(config: DataConfig, tmp_path: Path) -> None:
    config.cache_dir = tmp_path / "file"
    config.cache_dir.write_text("not a folder")
    with pytest.raises(TrainingError, match=r"could not be cached: .*NEMORUN_CACHE_DIR"):
        make_cache(config)


@pytest.mark.parametrize(("path", "message"), [("nowhere", "does not exist"), ("empty", "without any file")])
def test_a_path_without_text_is_refused(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingError, match=message):
        make_cache(DataConfig(path=tmp_path / path, cache_dir=tmp_path))


def test_a_text_shorter_than_a_sequence_is_refused(config: DataConfig) -> None:
    with pytest.raises(TrainingError, match=r"not one sequence of data.seq_length=4096"):
        data_of(config, seq_length=4096)


def test_many_processes_make_one_cache(config: DataConfig, tmp_path: Path) -> None:
    code = (
        "import sys; from nemorun.llm import DataConfig; from nemorun.llm.data import make_cache;"
        "sys.stdin.read(1); print(make_cache(DataConfig(path=sys.argv[1], cache_dir=sys.argv[2])))"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(config.path), str(tmp_path / "cache")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    # They have imported what they need when they read; then all go at once.
    answers = {process.communicate("x", timeout=60)[0].strip() for process in started}
    assert [process.returncode for process in started] == [0, 0, 0]
    assert [str(path) for path in (tmp_path / "cache").iterdir()] == list(answers)
