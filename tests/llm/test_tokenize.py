"""Sources into tokens: equal however it is done and interrupted; bad lines counted and named."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemorun.llm.data import load_tokenizer, tokenize
from nemorun.llm.data.encoders import DocumentEncoder
from nemorun.llm.data.files import BadLine, files_of, pieces, read_json, records
from nemorun.llm.data.token_files import open_tokens
from nemorun.training import TrainingError
from tests.llm.samples import TEXT, write_lines

BYTES = DocumentEncoder(load_tokenizer("bytes"))
SCRIPT = """
import sys
from nemorun.llm.data import load_tokenizer, tokenize
from nemorun.llm.data.encoders import DocumentEncoder

if __name__ == "__main__":
    corpus, output, tokenizer = sys.argv[1:]
    tokenize([corpus], output, DocumentEncoder(load_tokenizer(tokenizer)), workers=2, shard_bytes=10_000)
"""


def documents(folder: Path) -> list[str]:
    files = open_tokens(folder)
    tokenizer = files.load_tokenizer()
    ends = files.documents.tolist()
    assert all(files.tokens[end - 1] == tokenizer.eos for end in ends[1:])
    return [tokenizer.decode(files.tokens[a : b - 1].tolist()) for a, b in pairwise(ends)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """800 lines, some of them long, a compressed file and a plain text."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    chance = random.Random(0)
    texts = [f"{n} {TEXT[: chance.randrange(len(TEXT))]}" * chance.choice((1, 2, 20)) for n in range(800)]
    lines = [{"text": text} for text in texts]
    write_lines(folder / "a.jsonl", lines[:600])
    with gzip.open(folder / "b.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines[600:])
    (folder / "c.txt").write_text("ünïcode", encoding="utf-8")
    (folder / ".hidden").write_text("not me")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_documents_come_back_in_the_order_of_their_lines(
    corpus: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    encoder = DocumentEncoder(load_tokenizer(tokenizer_folder))
    made = tokenize([corpus], tmp_path / "out", encoder)
    lines = (corpus / "a.jsonl").read_text()
    lines += gzip.decompress((corpus / "b.jsonl.gz").read_bytes()).decode()
    expected = [json.loads(line)["text"] for line in lines.splitlines()] + ["ünïcode"]
    assert documents(tmp_path / "out") == expected
    about = open_tokens(tmp_path / "out").about
    assert (made.documents, about["documents"], about["bad_lines"]) == (801, 801, 0)
    assert about["sources"] == [str(corpus)]
    assert [path.name for path in tmp_path.iterdir()] == ["corpus", "out"]


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_files(
    corpus: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    encoder = DocumentEncoder(load_tokenizer(tokenizer_folder))
    tokenize([corpus], tmp_path / "whole", encoder, workers=1)
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "script.py", str(corpus), str(tmp_path / "cut"), str(tokenizer_folder)]
    shards = tmp_path / "cut.partial" / "shards"
    finished: list[int] = []
    for wanted in (2, 8, 15):
        process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "MARK": str(tmp_path)})
        deadline = time.monotonic() + 60
        while len(list(shards.glob("*.json"))) < wanted:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        finished.append(len(list(shards.glob("*.json"))))
        wait_for_nobody(f"MARK={tmp_path}")
        assert not (tmp_path / "cut").exists()
    assert 0 < finished[0] < finished[1] < finished[2] < len(pieces(files_of(corpus, ""), 10_000))
    whole_one = next(iter(shards.glob("*.json")))
    whole_one.with_suffix(".lengths").write_bytes(b"cut")  # what the disk did not keep is made again
    subprocess.run(command, cwd=tmp_path, check=True)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    assert not shards.exists()


def wait_for_nobody(mark: str) -> None:
    """The workers of a killed parent end by themselves."""
    deadline = time.monotonic() + 20

    def alive() -> list[str]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mark.encode() in (folder / "environ").read_bytes():
                    found.append(folder.name)
            except OSError:
                continue
        return found

    while alive():
        assert time.monotonic() < deadline, alive()
        time.sleep(0.05)


def test_what_is_finished_is_not_done_again(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [{"text": "x" * 100}] * 20 + ["bad"])
    told: list[Any] = []
    with pytest.raises(TrainingError, match="1 bad line, 20 good; skip_bad=0"):
        tokenize([source], tmp_path / "out", BYTES, shard_bytes=500)
    made = tokenize([source], tmp_path / "out", BYTES, shard_bytes=500, skip_bad=1, report=told.append)
    assert told[0].kept == 5 and told[0].read == told[0].total == source.stat().st_size
    assert made.bad == [BadLine(str(source), 21, "a JSON object is needed, not str")]
    again = tokenize([source], tmp_path / "out", BYTES)
    assert again.was_there and (again.documents, again.bad_count) == (20, 1)
    source.write_text('{"text": "other"}\n')
    with pytest.raises(TrainingError, match="is there already, and was not made of these sources"):
        tokenize([source], tmp_path / "out", BYTES)


def test_a_changed_source_is_read_anew(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [{"text": "x" * 100}] * 20 + ["bad"])
    with pytest.raises(TrainingError):
        tokenize([source], tmp_path / "out", BYTES, shard_bytes=500)
    write_lines(source, [{"text": "y" * 90}] * 20)
    tokenize([source], tmp_path / "out", BYTES, shard_bytes=500)
    assert set(documents(tmp_path / "out")) == {"y" * 90}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    lines=st.lists(st.sampled_from([b"", b"a", b"bc\r", b" ", b"d" * 30]), max_size=12),
    size=st.integers(1, 25),
    ends=st.booleans(),
)
def test_each_line_is_in_one_piece(lines: list[bytes], size: int, ends: bool, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\n".join(lines) + (b"\n" if ends else b""))
    parts = pieces([file, file], size)
    found = [record.raw.rstrip(b"\r\n") for part in parts for piece in part for record in records(piece)]
    wanted = [line.rstrip(b"\r") for line in lines if line.strip()]
    assert found == wanted * 2


BAD = {
    b'{"txt": "b"}': "no field 'text' with a text; the fields are 'txt'",
    b'{"text": b}': "no JSON: Expecting value at column 10",
    b'{"text": 1}': "'text' is no text but int",
    b'{"text": "caf\xe9"}': "no UTF-8 at byte 14",
    b'{"text": "\\ud83d"}': "half of a character (a lone surrogate) at place 1",
    b"[1]": "a JSON object is needed, not list",
    b"[" * 100_000: "nested too deeply",
}


@pytest.mark.parametrize("shard_bytes", [1000, 10**6])
def test_each_bad_line_is_named(tmp_path: Path, shard_bytes: int) -> None:
    source = tmp_path / "a.jsonl"
    lines = [b'{"text": "good"}', b"", *BAD, b'{"text": "end"}']
    source.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))
    made = tokenize([source], tmp_path / "out", BYTES, skip_bad=7, shard_bytes=shard_bytes)
    assert documents(tmp_path / "out") == ["good", "end"]
    assert [line.line for line in made.bad] == [3, 4, 5, 6, 7, 8, 9]
    for line, reason in zip(made.bad, BAD.values(), strict=True):
        assert reason in line.reason and line.file == str(source)


def test_a_file_that_is_cut_short_is_a_bad_line(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"text": "good"}\n' * 5000)
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(TrainingError, match=r"a.jsonl.gz:\d+: the rest of the file cannot be unpacked"):
        tokenize([tmp_path / "a.jsonl.gz"], tmp_path / "out", BYTES)
    tokenize([tmp_path / "latin.txt"], tmp_path / "bytes", BYTES)  # bytes take what there is
    assert open_tokens(tmp_path / "bytes").tokens.tolist() == [*b"caf\xe9", 256]


def test_a_text_in_another_encoding_is_named_by_its_file(tokenizer_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    encoder = DocumentEncoder(load_tokenizer(tokenizer_folder))
    with pytest.raises(TrainingError, match=r"latin.txt: no UTF-8 at byte 4"):
        tokenize([tmp_path / "latin.txt"], tmp_path / "out", encoder)


@pytest.mark.parametrize("name", ["a.parquet", "b.txt.gz", "c.jsonl.zst"])
def test_what_is_no_text_is_not_read_as_one(name: str, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / name).write_bytes(b"PAR1")
    for source in (tmp_path / "corpus", tmp_path / "corpus" / name):
        with pytest.raises(TrainingError, match=f"{name} is no text: "):
            tokenize([source], tmp_path / "out", BYTES)


def test_a_wrong_key_is_noticed_early(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [{"content": "x"}] * 5000)
    with pytest.raises(TrainingError, match=r"1,001 bad lines, 0 good so far, so the rest was not read"):
        tokenize([source], tmp_path / "out", BYTES)


def test_documents_start_with_the_first_token_where_that_is_wanted(
    tokenizer_folder: Path, tmp_path: Path
) -> None:
    encoder = DocumentEncoder(load_tokenizer(tokenizer_folder), bos=True)
    tokenize([write_lines(tmp_path / "a.jsonl", [{"text": "fox"}])], tmp_path / "out", encoder)
    assert documents(tmp_path / "out") == ["<|begin|>fox"]


def test_a_folder_of_tokens_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    tokenize([write_lines(tmp_path / "a.jsonl", [{"text": "fox"}])], tmp_path / "out", BYTES)
    with (tmp_path / "out" / "tokens.bin").open("ab") as file:
        file.truncate(4)
    with pytest.raises(TrainingError, match=r"tokens.bin has 4 bytes and not the 8"):
        open_tokens(tmp_path / "out")


def test_wide_tokens_where_the_vocabulary_needs_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wide(type(BYTES.tokenizer)):  # type: ignore[misc]
        vocab_size = 70_000
        eos = 69_999

    source = write_lines(tmp_path / "a.jsonl", [{"text": "fox"}])
    tokenize([source], tmp_path / "out", DocumentEncoder(Wide()))
    assert open_tokens(tmp_path / "out").tokens.dtype == np.uint32
    assert open_tokens(tmp_path / "out").tokens.tolist() == [*b"fox", 69_999]


def test_two_at_once_do_not_mix(tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "out.partial").mkdir()
    with (tmp_path / "out.partial" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(TrainingError, match="another process is at work"):
            tokenize([write_lines(tmp_path / "a.jsonl", [{"text": "fox"}])], tmp_path / "out", BYTES)


def test_a_json_object_is_read() -> None:
    assert read_json('{"a": "ü"}'.encode()) == {"a": "ü"}
