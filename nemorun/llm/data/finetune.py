"""Examples to fine-tune on, as batches: rows of one example or several, in an order set by a seed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nemorun.llm.data.cache import bad_lines, cached
from nemorun.llm.data.chat import chat_template
from nemorun.llm.data.config import FinetuneDataConfig
from nemorun.llm.data.example_encoder import ExampleEncoder
from nemorun.llm.data.files import files_of
from nemorun.llm.data.packing import Place, RowOrder, row_of
from nemorun.llm.data.sharing import World, first_then_all, shares
from nemorun.llm.data.shuffle import Shuffle
from nemorun.llm.data.stream import batch_of
from nemorun.llm.data.token_files import TokenFiles
from nemorun.llm.data.tokenizer import load_tokenizer
from nemorun.llm.data.vocabulary import check_vocabulary
from nemorun.training.batch import Batch
from nemorun.training.errors import TrainingError


class FinetuneData:
    """This rank's share of the examples, as the trainer's `Batches`.

    As with `PretrainData`, global batches do not depend on the number of ranks. The last one of an epoch is
    filled up with rows of the next, so that all are of one size.
    """

    def __init__(
        self,
        config: FinetuneDataConfig,
        seq_length: int,
        ranks: World,
        *,
        data_rank: int | None = None,
        data_ranks: int | None = None,
        vocab_size: int | None = None,
    ) -> None:
        """`vocab_size` is the model's; tokens beyond it are refused. Every rank must make one."""
        self.config = config
        self.seq_length = seq_length
        self.rank = ranks.rank if data_rank is None else data_rank
        self.ranks = ranks.world_size if data_ranks is None else data_ranks
        self._says = ranks.first
        self.tokenizer = load_tokenizer(config.tokenizer)
        template = chat_template(config.chat_template, self.tokenizer)
        self._encoder = ExampleEncoder(self.tokenizer, template, config.train_on)
        self._files, self._val_files = first_then_all(ranks, self._open)
        check_vocabulary(self._files.tokenizer, vocab_size, "data")
        for files in {id(one): one for one in (self._files, self._val_files)}.values():
            if ranks.first and (text := bad_lines(files)):
                print(text, flush=True)
        self._examples, self._val_examples = self._chosen()
        self._order = RowOrder(
            self._lengths(self._files, self._examples), seq_length, self._window(), config.seed
        )
        self._val_order = RowOrder(
            self._lengths(self._val_files, self._val_examples), seq_length, self._window(), None
        )
        self._place = Place()
        self._rows = self._order.after(self._place)

    def __str__(self) -> str:
        rows, exact = self._order.about()
        length = self.seq_length
        places = int(self._order.lengths.sum())
        text = (
            f"{len(self._examples):,} examples to train on, {len(self._val_examples):,} to validate on; "
            f"an epoch is {'' if exact else 'about '}{rows:,} rows of {length:,} tokens, "
            f"{places / (rows * length):.0%} full, or "
            f"{rows / self.config.global_batch_size:,.1f} steps"
        )
        if self._cut:
            text += f"; {self._cut:,} examples are longer and are cut at {length:,} tokens"
        if self._left_out:
            text += f"; {self._left_out:,} more are left out: nothing to learn is within {length:,} tokens"
        return text

    def next_step(self) -> list[Batch]:
        """This rank's part of the next global batch."""
        found = [next(self._rows) for _ in range(self.config.global_batch_size)]
        self._place = found[-1][1]
        return self._batches(self._files, self._examples, [row for row, _ in found])

    def validation(self, global_batches: int) -> list[Batch]:
        """The first `global_batches` of the validation examples, in their own order; the last is padded."""
        windows = (self._val_order.rows(0, window) for window in range(self._val_order.windows))
        size = self.config.global_batch_size
        rows = list(itertools.islice(itertools.chain.from_iterable(windows), global_batches * size))
        rows += [[]] * (-len(rows) % size)
        return self._batches(self._val_files, self._val_examples, rows)

    def steps(self, epochs: float) -> int:
        """Optimizer steps in which every row of `epochs` epochs is seen."""
        whole = sum(self._order.count(epoch) for epoch in range(int(epochs)))
        part = epochs % 1 and self._order.count(int(epochs)) * (epochs % 1)
        return int(-(-(whole + part) // self.config.global_batch_size))

    def state(self) -> dict[str, Any]:
        return {
            "epoch": self._place.epoch,
            "window": self._place.window,
            "row": self._place.row,
            "examples": self._files.fingerprint,
            "settings": [
                self.config.seed,
                self.seq_length,
                self._window(),
                len(self._examples),
            ],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; with other examples or settings, at the start of that epoch."""
        if "window" not in state:
            raise TrainingError(
                "the checkpoint's position in the data is of another kind of data: start a new run"
            )
        mine = self.state()
        if all(mine[key] == state[key] for key in ("examples", "settings")):
            self._go_to(Place(state["epoch"], state["window"], state["row"]))
            return
        if self._says:
            print(
                "warning: the checkpoint was trained on other examples, or in another order: this goes on at "
                f"the start of epoch {state['epoch'] + 1}",
                flush=True,
            )
        self._go_to(Place(state["epoch"]))

    def _go_to(self, place: Place) -> None:
        self._place = place
        self._rows = self._order.after(place)

    def _batches(self, files: TokenFiles, examples: np.ndarray, rows: Sequence[list[int]]) -> list[Batch]:
        """This rank's micro-batches of these rows, which are places in `examples`."""
        return [
            batch_of([row_of(files, examples[np.array(rows[n], dtype=int)], self.seq_length) for n in places])
            for places in shares(len(rows), self.config.rows, self.rank, self.ranks)
        ]

    def _chosen(self) -> tuple[np.ndarray, np.ndarray]:
        """The examples to train and to validate on, by their places in the files."""
        usable, self._cut, self._left_out = _usable(self._files, self.seq_length)
        if self._val_files is not self._files:
            val = _usable(self._val_files, self.seq_length)[0]
        else:
            count = len(usable)
            kept = (
                min(max(round(self.config.val_fraction * count), 1), count - 1)
                if self.config.val_fraction
                else 0
            )
            shuffle = Shuffle(max(count, 1), 0)  # not by the seed of the order: these are never trained on
            places = sorted(shuffle[place] for place in range(kept))
            val = usable[places]
            usable = np.delete(usable, places)
        if not len(usable):
            why = (
                f": {self._left_out:,} have nothing to learn within data.seq_length={self.seq_length} tokens"
            )
            found = f"data.train_data={self.config.train_data} has no example to train on"
            raise TrainingError(found + (why if self._left_out else ""))
        return usable, val

    def _lengths(self, files: TokenFiles, examples: np.ndarray) -> np.ndarray:
        """Places that each takes in a row."""
        lengths = files.documents[examples + 1] - files.documents[examples] - 1
        return np.minimum(lengths, self.seq_length)

    def _window(self) -> int:
        return self.config.packing_window if self.config.packing else 0

    def _open(self) -> tuple[TokenFiles, TokenFiles]:
        config = self.config
        train = self._cached(config.train_data, "data.train_data")
        return train, self._cached(config.val_data, "data.val_data") if config.val_data else train

    def _cached(self, path: str | Path | list[str | Path], name: str) -> TokenFiles:
        paths = path if isinstance(path, list) else [path]
        files = [file for one in paths for file in files_of(one, name, lines_only=True)]
        return cached(files, self._encoder, self.config.cache_dir, self.config.skip_bad, f"{name}={path}")


def _usable(files: TokenFiles, seq_length: int) -> tuple[np.ndarray, int, int]:
    """Examples with something to learn in their first tokens; how many of them are cut; how many are not."""
    assert files.learned is not None
    long = np.flatnonzero(np.diff(files.documents) > seq_length + 1)
    starts = files.documents[long]
    empty = [
        n for n, at in zip(long, starts, strict=True) if not files.learned[at + 1 : at + seq_length + 1].any()
    ]
    return np.delete(np.arange(files.count), empty), len(long) - len(empty), len(empty)
