"""What a model is trained on, as plain dataclasses: torch-free, so that the launcher can check them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nemorun.errors import ConfigError
from nemorun.training.config import default_seed


class _Batches:
    """What both kinds of data say of their batches."""

    micro_batch_size: int | None

    @property
    def rows(self) -> int:
        """Sequences in one forward pass of one rank: one, as long as that is left open."""
        return 1 if self.micro_batch_size is None else self.micro_batch_size


@dataclass
class DataConfig(_Batches):
    """Text to pre-train on: raw, or made into tokens by `nemorun data tokenize`; one source or a blend."""

    path: str | Path | list[str | Path] | dict[str, float] | None = None
    """A text file, a `.jsonl` file (one document a line, under `text_key`), a folder with such files, or one
    that `nemorun data tokenize` made. A list takes each source as often as its size says; a mapping gives
    each a weight. None: the sources of the running interpreter's standard library."""
    tokenizer: str | Path | None = None
    """A folder with `tokenizer.json`, the id of a model on the Hugging Face hub, or `bytes`.
    None: that of tokenised data, and bytes for raw text."""
    global_batch_size: int = 8
    """Sequences in one optimizer step, over all ranks."""
    micro_batch_size: int | None = None
    """Sequences in one forward pass of one rank; the rest is gradient accumulation. None: as many as make
    use of a GPU and surely fit it (`nemorun.llm.settling`); one on the CPU."""
    seq_length: int | None = None
    """Tokens in a sequence. None: the model's seq_length."""
    reset_positions: bool = False
    """Begin anew at each document inside a sequence: positions restart, no token attends to another document,
    and none is asked for the first token of the next."""
    val_path: str | Path | list[str | Path] | None = None
    """Text to validate on, as `path`. None: some documents of `path` are kept for that."""
    val_fraction: float = 0.01
    """Share of the documents kept for validation, at least one; of a single one, this share of its end."""
    seed: int = field(default_factory=default_seed)
    """Seed of the order of the training sequences. Default: what `run.set_seed` got, else 0."""
    text_key: str = "text"
    """The field that holds the text in `.jsonl` files."""
    skip_bad: int = 100
    """Bad lines of `.jsonl` files that are left out, counted and named; with more, no training starts."""
    prefetch: int = 2
    """Steps whose batches are read ahead, while the model computes. 0: none."""
    cache_dir: str | Path | None = None
    """Where token caches are kept. None: $NEMORUN_CACHE_DIR, else the user's cache folder."""

    def validate(self) -> None:
        _check(self)
        if isinstance(self.path, list | dict) and not self.path:
            raise ConfigError(f"path={self.path} names no source: give one, several, or None")
        if isinstance(self.path, dict):
            for source, weight in self.path.items():
                if not (math.isfinite(weight) and weight > 0):
                    raise ConfigError(
                        f"path gives {source!r} the weight {weight}, and weights are greater than 0. "
                        "Leave out a source that is not wanted"
                    )


@dataclass
class FinetuneDataConfig(_Batches):
    """Examples to fine-tune on: a conversation, or a prompt and its answer, on each line."""

    train_data: str | Path | list[str | Path] = ""
    """A `.jsonl` file, a folder of such files, or a list of either."""
    val_data: str | Path | list[str | Path] | None = None
    """Examples to validate on. None: `val_fraction` of `train_data`."""
    tokenizer: str | Path | None = None
    """A folder with `tokenizer.json`, the id of a model on the Hugging Face hub, or `bytes`. None: bytes."""
    chat_template: str | Path | None = None
    """A Jinja template that writes a conversation as text, or a file with one. None: the tokenizer's, else
    a plain one."""
    train_on: Literal["answers", "all"] = "answers"
    """Learn the assistant's turns only, or every token."""
    packing: bool = True
    """Put several short examples into one row, each whole and blind to the others."""
    packing_window: int = 1000
    """Examples, in the shuffled order, that are packed together."""
    global_batch_size: int = 8
    """Rows in one optimizer step, over all ranks."""
    micro_batch_size: int | None = None
    """Rows in one forward pass of one rank; the rest is gradient accumulation. None: as many as make use of
    a GPU and surely fit it (`nemorun.llm.settling`); one on the CPU."""
    seq_length: int | None = None
    """Tokens in a row; longer examples are cut. None: the model's seq_length."""
    val_fraction: float = 0.05
    """Share of the examples kept for validation, at least one, where there is no `val_data`."""
    seed: int = field(default_factory=default_seed)
    """Seed of the order of the examples. Default: what `run.set_seed` got, else 0."""
    skip_bad: int = 100
    """Bad lines that are left out, counted and named; with more, no training starts."""
    prefetch: int = 2
    """Steps whose batches are read ahead, while the model computes. 0: none."""
    cache_dir: str | Path | None = None
    """Where token caches are kept. None: $NEMORUN_CACHE_DIR, else the user's cache folder."""

    def validate(self) -> None:
        _check(self)
        _at_least("packing_window", self.packing_window, 1)
        if not self.train_data:
            raise ConfigError("train_data is not set: name a .jsonl file with examples to train on")


def _check(config: DataConfig | FinetuneDataConfig) -> None:
    """What both have in common."""
    for name, least in (("global_batch_size", 1), ("skip_bad", 0), ("prefetch", 0)):
        _at_least(name, getattr(config, name), least)
    _at_least("micro_batch_size", config.rows, 1)
    if config.seq_length is not None:
        _at_least("seq_length", config.seq_length, 1)
    if config.global_batch_size % config.rows:
        raise ConfigError(
            f"global_batch_size={config.global_batch_size} is not divisible by "
            f"micro_batch_size={config.micro_batch_size}"
        )
    if not 0 <= config.val_fraction < 1:
        raise ConfigError(f"val_fraction={config.val_fraction} must be at least 0 and less than 1")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name}={value} must be at least {least}")
