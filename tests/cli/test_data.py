"""`nemorun data`: tokens made and shown from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.llm.samples import make_tokenizer, write_lines


def nemorun(*argv: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nemorun", "data", *map(str, argv)]
    return subprocess.run(command, cwd=cwd, text=True, capture_output=True)


def test_tokens_are_made_and_shown(tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "tokenizer")
    write_lines(tmp_path / "a.jsonl", [{"body": f"The quick brown fox {n}"} for n in range(50)])
    done = nemorun(
        *("tokenize", "a.jsonl", "--tokenizer", "tokenizer", "--text-key", "body"),
        *("-o", "out", "--workers", "2", "--bos"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "50 documents" in done.stderr and not done.stdout
    (tmp_path / "tokenizer").rename(tmp_path / "elsewhere")  # the folder has its own copy
    shown = nemorun("show", "out", "--document", "7", cwd=tmp_path)
    assert shown.stdout.endswith("\n<|begin|>The quick brown fox 7<|endoftext|>\n"), shown.stderr
    about = json.loads(nemorun("show", "out", "--json", cwd=tmp_path).stdout)
    assert (about["documents"], about["sources"], about["sample"][:12]) == (50, ["a.jsonl"], "<|begin|>The")
    again = nemorun(
        *("tokenize", "a.jsonl", "--tokenizer", "elsewhere", "--text-key", "body", "-o", "out", "--bos"),
        cwd=tmp_path,
    )
    assert again.returncode == 1 and "is there already, and was not made of these sources" in again.stderr


def test_bad_lines_are_refused_named_and_allowed(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"text": "good"}, "bad", {"text": 1}])
    refused = nemorun("tokenize", "a.jsonl", "-o", "out", cwd=tmp_path)
    assert refused.returncode == 1
    assert "2 bad lines, 1 good" in refused.stderr and "a.jsonl:3: 'text' is no text" in refused.stderr
    assert "Traceback" not in refused.stderr and not (tmp_path / "out").exists()
    allowed = nemorun("tokenize", "a.jsonl", "-o", "out", "--skip-bad", "2", cwd=tmp_path)
    assert allowed.returncode == 0 and "left out: " in allowed.stderr
    assert "2 bad lines left out in all" in allowed.stderr
    for line in ("goes on: ", "1 documents, 5 tokens"):
        assert line in allowed.stderr


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("tokenize", "nowhere", "-o", "out"), "source=nowhere does not exist on this machine"),
        (("tokenize", "a.txt", "-o", "out", "--tokenizer", "./no"), "tokenizer=./no is no folder"),
        (("tokenize", "a.txt", "-o", "out", "--bos"), "names no first token"),
        (("show", "."), "is no folder of tokens"),
    ],
)
def test_mistakes_are_sentences(argv: tuple[str, ...], message: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    done = nemorun(*argv, cwd=tmp_path)
    assert done.returncode in (1, 2) and message in done.stderr and "Traceback" not in done.stderr


def test_without_the_training_packages_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    code = (
        "import sys; sys.modules['numpy'] = None\n"
        "from nemorun.cli.main import invoke; sys.exit(invoke(['data', 'tokenize', 'a.txt', '-o', 'out']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 2 and "nemorun data needs numpy" in done.stderr, done.stderr
