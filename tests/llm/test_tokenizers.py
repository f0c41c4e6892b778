"""Tokenizers: from a folder, from the hub, bytes; and what each says of itself."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemorun.llm.data import END, load_tokenizer
from nemorun.training import TrainingError
from tests.llm.samples import make_tokenizer


def test_a_folder_in_the_form_of_the_hub(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    ids = tokenizer.encode("The quick brown fox, naïve — 東京")
    assert tokenizer.decode(ids) == "The quick brown fox, naïve — 東京"
    assert len(ids) < 35 and max(ids) < tokenizer.vocab_size == 350
    assert tokenizer.decode([tokenizer.bos or 0, tokenizer.eos]) == "<|begin|><|endoftext|>"
    assert tokenizer.marks == {"bos_token": "<|begin|>", "eos_token": "<|endoftext|>"}
    texts = ["a", "The quick"]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
    assert load_tokenizer(tokenizer_folder / "tokenizer.json").fingerprint == tokenizer.fingerprint


def test_special_tokens_in_a_text_are_text_unless_they_are_wanted(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    text = "<|endoftext|>a"
    assert tokenizer.eos not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    (marked,) = tokenizer.encode_marked([text], whole=False)
    assert (marked.ids[0], marked.spans) == (tokenizer.eos, [(0, 13), (13, 14)])
    (whole,) = tokenizer.encode_marked([text], whole=True)
    assert whole.ids == [tokenizer.bos, *marked.ids]


def test_a_tokenizer_is_read_anew_in_each_process(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    copy = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301 - it was made here
    assert (copy.fingerprint, copy.encode("fox")) == (tokenizer.fingerprint, tokenizer.encode("fox"))


def test_a_fingerprint_tells_tokens_apart_and_not_folders(tokenizer_folder: Path, tmp_path: Path) -> None:
    mine = load_tokenizer(tokenizer_folder).fingerprint
    assert load_tokenizer(shutil.copytree(tokenizer_folder, tmp_path / "copy")).fingerprint == mine
    assert load_tokenizer(make_tokenizer(tmp_path / "other", size=300)).fingerprint != mine
    assert load_tokenizer("bytes").fingerprint != mine


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_bytes_are_bytes(text: str) -> None:
    tokenizer = load_tokenizer(None)
    assert tokenizer.encode(text) == list(text.encode())
    assert tokenizer.decode([*tokenizer.encode(text), END]) == text + "<|end|>"
    (placed,) = tokenizer.encode_marked([f"{text}<|end|>x"], whole=True)
    assert placed.ids == [*text.replace("<|end|>", "\0").encode(), END, ord("x")] or "<|end|>" in text
    assert len(placed.ids) == len(placed.spans) and placed.spans[-1][1] == len(text) + 8


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no tokenizer.json"),
        ({"tokenizer.model": "x"}, "only tokenizer.model.*save_pretrained"),
        ({"tokenizer.json": "{}"}, "tokenizer.json cannot be read"),
        ({"tokenizer_config.json": "{"}, "tokenizer_config.json cannot be read"),
        ({"tokenizer_config.json": "{}"}, None),  # a known end is in the vocabulary
        ({"tokenizer_config.json": '{"eos_token": "<x>"}'}, "eos_token='<x>', which its tokenizer.json"),
    ],
)
def test_a_folder_that_is_not_whole_is_named(
    files: dict[str, str], message: str | None, tokenizer_folder: Path, tmp_path: Path
) -> None:
    if "tokenizer_config.json" in files:
        shutil.copy(tokenizer_folder / "tokenizer.json", tmp_path)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    if message is None:
        assert load_tokenizer(tmp_path).marks["eos_token"] == "<|endoftext|>"
        return
    with pytest.raises(TrainingError, match=message):
        load_tokenizer(tmp_path)


def test_a_name_that_is_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="is no folder on this machine"):
        load_tokenizer(tmp_path / "nowhere")


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download needs: each file, by its name."""

    folder: Path
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        name = self.path.rpartition("/")[2].partition("?")[0]
        if self.path.startswith("/me/tok/resolve/") and (self.folder / name).is_file():
            body = (self.folder / name).read_bytes()
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if "me/tok" in self.path else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hash(body)}"')
        self.send_header("X-Repo-Commit", "c0ffee" * 6 + "c0ff")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        pass


def test_the_hub_is_asked_for_a_model_that_is_no_folder(tokenizer_folder: Path, tmp_path: Path) -> None:
    Hub.folder, Hub.asked = tokenizer_folder, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = "from nemorun.llm.data import load_tokenizer as l; import sys; print(l(sys.argv[1]).encode('fox'))"

    def ask(name: str, **more: str) -> subprocess.CompletedProcess[str]:
        env = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path), **more}
        return subprocess.run([sys.executable, "-c", code, name], env=env, text=True, capture_output=True)

    try:
        done = ask("me/tok")
        assert done.stdout.strip() == str(load_tokenizer(tokenizer_folder).encode("fox")), done.stderr
        assert any("tokenizer_config.json" in line for line in Hub.asked)
        assert "the Hugging Face hub did not give its" in ask("me/other").stderr
    finally:
        server.shutdown()
        server.server_close()
    again = ask("me/tok", HF_HUB_OFFLINE="1")  # without a network, what was fetched is used
    assert again.stdout == done.stdout
