"""Text as tokens: a memory-mapped cache made once, sequences in an order set by a seed, an exact position.

Tokens are bytes (0 to 255) and END (256), which follows each document. The documents stand in one long array;
a sequence is a window of it, so a sequence may hold the end of one document and the start of the next.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nemorun.llm.config import DataConfig
from nemorun.training.distributed import Ranks
from nemorun.training.errors import TrainingError
from nemorun.training.loss import IGNORE

END = 256
"""The token after each document."""
VOCAB_SIZE = 257
_FORMAT = 2
_NO_SOURCES = frozenset({"site-packages", "dist-packages", "test", "tests", "__pycache__"})


class TextData:
    """This rank's share of a text, as the trainer's `Batches`.

    The order of the sequences, and with it each global batch, does not depend on the number of ranks: a run
    can go on with another number of them. Each epoch has its own order.
    """

    def __init__(self, config: DataConfig, seq_length: int, ranks: Ranks) -> None:
        self.config = config
        self.seq_length = seq_length
        self.ranks = ranks
        self.samples = 0
        """Training sequences taken so far, over all ranks."""
        # The first rank makes the cache; the others then find it, or make their own where no disk is shared.
        if ranks.first:
            make_cache(config)
        ranks.all(True)
        folder = make_cache(config)
        self.fingerprint = folder.name
        self._train = _read(folder / "train.bin")
        self._val = _read(folder / "val.bin")
        self._windows = (len(self._train) - 1) // seq_length
        if self._windows < 1:
            raise TrainingError(
                f"data.path={config.path} has {len(self._train)} tokens to train on, not one sequence of "
                f"data.seq_length={seq_length} and the token after it"
            )

    def __str__(self) -> str:
        source = self.config.path or f"the library of Python {sys.version.split()[0]}"
        return f"{len(self._train):,} tokens to train on, {len(self._val):,} to validate on: {source}"

    def next_step(self) -> list[tuple[Tensor, Tensor]]:
        """This rank's part of the next global batch: tokens and labels, each [micro_batch_size, S]."""
        first = self.samples
        self.samples += self.config.global_batch_size
        return [
            _batch([self._sample(first + i) for i in indices])
            for indices in self._shares(self.config.global_batch_size)
        ]

    def validation(self, global_batches: int) -> list[tuple[Tensor, Tensor]]:
        """The first `global_batches` of the validation text, in its own order and padded at its end."""
        windows = -(-(len(self._val) - 1) // self.seq_length) if len(self._val) else 0
        batches = min(global_batches, -(-windows // self.config.global_batch_size))
        return [
            _batch([_window(self._val, i, self.seq_length) for i in indices])
            for indices in self._shares(batches * self.config.global_batch_size)
        ]

    def state(self) -> dict[str, Any]:
        return {"samples": self.samples, "tokens_from": self.fingerprint, "seed": self.config.seed}

    def restore(self, state: dict[str, Any]) -> None:
        if (state["tokens_from"], state["seed"]) != (self.fingerprint, self.config.seed) and self.ranks.first:
            print(
                "warning: the data or its seed is not the one that the checkpoint was trained on", flush=True
            )
        self.samples = state["samples"]

    def _shares(self, total: int) -> Iterator[range]:
        """This rank's micro-batches of `total` sequences, as ranges of their indices."""
        size = self.config.micro_batch_size
        for start in range(self.ranks.rank * size, total, self.ranks.world_size * size):
            yield range(start, start + size)

    def _sample(self, index: int) -> tuple[Tensor, Tensor]:
        epoch, position = divmod(index, self._windows)
        return _window(self._train, self._order(epoch)[position], self.seq_length)

    @functools.lru_cache(maxsize=2)  # noqa: B019 - one instance a run; two epochs meet in one batch
    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.config.seed, epoch]).permutation(self._windows)


def make_cache(config: DataConfig) -> Path:
    """The folder with `train.bin` and `val.bin` (uint16 tokens) of this text, made if it is not there.

    Its name tells the files that it was made of, by path, size and time; so changed files make a new one.
    Any number of processes may call this at once: each writes its own, and the first to finish names it.
    """
    files = _files(config)
    identity = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    description = json.dumps([_FORMAT, config.val_fraction, config.text_key, identity])
    parent = _cache_parent(config)
    final = parent / hashlib.sha256(description.encode()).hexdigest()[:20]
    if final.is_dir():
        return final
    try:
        _make(final, files, config)
    except OSError as error:
        # Another process was first, unless this is a real failure.
        if not final.is_dir():
            raise TrainingError(
                f"the tokens of data.path={config.path} could not be cached: {error}. "
                "data.cache_dir or NEMORUN_CACHE_DIR can name another folder"
            ) from error
    return final


def _make(final: Path, files: list[Path], config: DataConfig) -> None:
    parent = final.parent
    parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = Path(tempfile.mkdtemp(prefix=f"{final.name}.", suffix=".tmp", dir=parent))
    try:
        _write(partial, files, config)
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _files(config: DataConfig) -> list[Path]:
    """The text's files, sorted."""
    if config.path is None:
        root = Path(sysconfig.get_path("stdlib"))
        found = [f for f in root.rglob("*.py") if not _NO_SOURCES.intersection(f.relative_to(root).parts)]
        if not found:
            raise TrainingError(
                f"this Python has no library sources in {root}: set data.path to a text of yours"
            )
        return sorted(found)
    root = Path(config.path).expanduser().absolute()
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise TrainingError(f"data.path={config.path} does not exist on this machine ({root})")
    found = [f for f in root.rglob("*") if f.is_file() and not _hidden(f.relative_to(root))]
    if not found:
        raise TrainingError(f"data.path={config.path} is a folder without any file")
    return sorted(found)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _documents(files: list[Path], text_key: str) -> Iterator[tuple[str, bytes]]:
    """(name, text) of each document. A name is the same wherever the whole text is kept."""
    root = Path(os.path.commonpath([f.parent for f in files]))
    for file in files:
        name = str(file.relative_to(root))
        if file.suffix != ".jsonl":
            yield name, file.read_bytes()
            continue
        with file.open("rb") as lines:  # as bytes, so that a line which is no UTF-8 can be named, too
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    document = json.loads(line)[text_key].encode()
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise TrainingError(
                        f"{file}, line {number}: not a JSON object in UTF-8 with a text under {text_key!r} "
                        f"({error}). data.text_key names the field"
                    ) from None
                yield f"{name}:{number}", document


def _write(folder: Path, files: list[Path], config: DataConfig) -> None:
    """Write both token files. Each document goes to one of them as a whole, chosen by its name."""
    documents = last = 0
    with (folder / "train.bin").open("w+b") as train, (folder / "val.bin").open("wb") as val:
        for name, text in _documents(files, config.text_key):
            tokens = np.append(np.frombuffer(text, dtype=np.uint8).astype(np.uint16), np.uint16(END))
            documents += 1
            if _unit_hash(name) < config.val_fraction:
                val.write(tokens.data)
            else:
                last = train.tell()
                train.write(tokens.data)
        if config.val_fraction and not val.tell():
            # Too few documents for chance to pick one: take the last, or the end of the only one.
            if documents == 1:
                last = int(train.tell() // 2 * (1 - config.val_fraction)) * 2
            train.seek(last)
            val.write(train.read())
            train.truncate(last)
        for file in (train, val):
            file.flush()
            os.fsync(file.fileno())


def _unit_hash(name: str) -> float:
    """A number from 0 to 1 that depends on nothing but the name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def _read(path: Path) -> np.ndarray:
    if not path.stat().st_size:  # What is empty cannot be mapped.
        return np.empty(0, dtype=np.uint16)
    return np.memmap(path, dtype=np.uint16, mode="r")


def _window(tokens: np.ndarray, index: int, seq_length: int) -> tuple[Tensor, Tensor]:
    """Sequence `index` and its labels, the tokens that follow, each [seq_length] int64; padded at the end."""
    start = index * seq_length
    piece = torch.from_numpy(tokens[start : start + seq_length + 1].astype(np.int64))
    inputs = torch.full((seq_length,), END)
    labels = torch.full((seq_length,), IGNORE)
    if len(piece) > 1:
        inputs[: len(piece) - 1] = piece[:-1]
        labels[: len(piece) - 1] = piece[1:]
    return inputs, labels


def _batch(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    inputs, labels = zip(*samples, strict=True)
    return torch.stack(inputs), torch.stack(labels)


def _cache_parent(config: DataConfig) -> Path:
    chosen = config.cache_dir or os.environ.get("NEMORUN_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "nemorun" / "tokens"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nemorun" / "tokens"
