"""Tokens on disk: a folder that ranks map into memory.

    tokens.bin      all documents one after the other, each with its end token; uint16, or uint32 where needed
    documents.idx   where each document starts, and where the last one ends: int64
    learned.bin     of examples to fine-tune on: 1 for each token that is to be learned, uint8
    tokenizer/      a copy of the tokenizer, unless that is bytes; not in caches
    data.json       what the rest is, and what it was made of; written last

All numbers are little-endian.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nemorun.llm.data.tokenizer import Tokenizer, load_tokenizer
from nemorun.training.errors import TrainingError

FORMAT = 1
ABOUT = "data.json"
TOKENS = "tokens.bin"
DOCUMENTS = "documents.idx"
LEARNED = "learned.bin"
TOKENIZER = "tokenizer"


@dataclass(frozen=True)
class TokenFiles:
    """A folder of tokens, opened."""

    folder: Path
    about: dict[str, Any]
    """The content of data.json."""
    tokens: np.ndarray
    documents: np.ndarray
    """Where each document starts, and at last where the last one ends."""
    learned: np.ndarray | None
    """Of examples, which tokens are to be learned."""

    @property
    def fingerprint(self) -> str:
        """Equal for equal content."""
        return str(self.about["sha256"])

    @property
    def tokenizer(self) -> dict[str, Any]:
        """Of the tokenizer that made it: name, fingerprint, vocab_size, eos."""
        return self.about["tokenizer"]

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer that made it: the copy that is kept with it, else by its name."""
        copy = self.folder / TOKENIZER
        return load_tokenizer(copy if copy.is_dir() else self.tokenizer["name"])

    @property
    def count(self) -> int:
        """Documents."""
        return len(self.documents) - 1


def token_type(vocab_size: int) -> str:
    """The smallest type that holds all tokens."""
    return "<u2" if vocab_size <= 1 << 16 else "<u4"


def is_tokenised(path: str | Path | None) -> bool:
    return path is not None and (Path(path).expanduser() / ABOUT).is_file()


def open_tokens(path: str | Path) -> TokenFiles:
    """Open a folder that `nemorun data tokenize` made. Raises TrainingError where it is not whole."""
    folder = Path(path).expanduser().absolute()
    try:
        about = json.loads((folder / ABOUT).read_text())
        found = about["format"]
    except FileNotFoundError:
        raise TrainingError(
            f"{folder} is no folder of tokens: it has no {ABOUT}. `nemorun data tokenize` makes one"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"{folder / ABOUT} is not what `nemorun data tokenize` writes ({type(error).__name__}: {error}). "
            "Where it is a file of yours, name the files of text one by one"
        ) from None
    if found != FORMAT:
        raise TrainingError(
            f"{folder} has format {found}, and this nemorun reads {FORMAT}: tokenise the text again"
        )
    kind = token_type(about["tokenizer"]["vocab_size"])
    return TokenFiles(
        folder,
        about,
        _map(folder / TOKENS, kind, about["tokens"]),
        _map(folder / DOCUMENTS, "<i8", about["documents"] + 1),
        _map(folder / LEARNED, "u1", about["tokens"]) if about["kind"] == "examples" else None,
    )


def _map(path: Path, kind: str, count: int) -> np.ndarray:
    """The file's numbers, of which there must be `count`."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror}. Tokenise the text again") from None
    expected = count * np.dtype(kind).itemsize
    if size != expected:
        raise TrainingError(
            f"{path} has {size:,} bytes and not the {expected:,} that {ABOUT} beside it speaks of: it was "
            "cut short or changed. Copy or tokenise it again"
        )
    return np.memmap(path, dtype=kind, mode="r") if count else np.empty(0, dtype=kind)
