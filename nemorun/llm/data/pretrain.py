"""Text to pre-train on, as batches: one source or a blend, shuffled by a seed, with an exact position."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemorun.llm.data.blend import Blend
from nemorun.llm.data.byte_level import ByteTokenizer
from nemorun.llm.data.cache import bad_lines, cached
from nemorun.llm.data.config import DataConfig
from nemorun.llm.data.encoders import DocumentEncoder
from nemorun.llm.data.files import describe, files_of
from nemorun.llm.data.sharing import World, first_then_all, shares
from nemorun.llm.data.shuffle import Shuffle
from nemorun.llm.data.stream import Stream, batch_of, split
from nemorun.llm.data.token_files import TokenFiles, is_tokenised, open_tokens
from nemorun.llm.data.tokenizer import Tokenizer, load_tokenizer
from nemorun.llm.data.vocabulary import check_vocabulary
from nemorun.training.batch import Batch
from nemorun.training.errors import TrainingError


class PretrainData:
    """This rank's share of the text, as the trainer's `Batches`.

    The order of the sequences, and with it each global batch, does not depend on the number of ranks: a run
    can go on with another number of them. Each epoch of a source has its own order. Ranks that work on the
    same data, as those of tensor parallelism, have the same `data_rank`.
    """

    def __init__(
        self,
        config: DataConfig,
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
        self.samples = 0
        """Training sequences taken so far, over all ranks."""
        sources = _weighted(config.path)
        self._open_streams(ranks, [path for path, _ in sources])
        check_vocabulary(self._train[0].files.tokenizer, vocab_size, "data")
        self.names = [describe(path) for path, _ in sources]
        for name, stream in zip(self.names, self._train, strict=True):
            if stream.whole_windows < 1:
                raise TrainingError(
                    f"data.path={name} has {len(stream)} tokens to train on, not one sequence of "
                    f"data.seq_length={seq_length} and the token after it"
                )
        self._weights = [
            stream.whole_windows if weight is None else weight
            for stream, (_, weight) in zip(self._train, sources, strict=True)
        ]
        self._blend = Blend(self._weights)
        self._taken = [0] * len(sources)
        """Sequences taken of each source, over all epochs."""

    def __str__(self) -> str:
        sizes = [sum(map(len, streams)) for streams in (self._train, self._val)]
        train = f"{sizes[0]:,} tokens to train on, {sizes[1]:,} to validate on"
        if len(self.names) == 1:
            return f"{train}: {self.names[0]}"
        shared = ", ".join(
            f"{share:.1%} {name}" for name, share in zip(self.names, self._blend.shares, strict=True)
        )
        return f"{train}: {shared}"

    def next_step(self) -> list[Batch]:
        """This rank's part of the next global batch."""
        chosen = [self._next() for _ in range(self.config.global_batch_size)]
        return [
            batch_of([self._train[source].window(self._order(source, nth)) for source, nth in rows])
            for rows in self._shares(chosen)
        ]

    def validation(self, global_batches: int) -> list[Batch]:
        """The first `global_batches` of the validation text, in its own order and padded at its end.

        Sources take turns, until each is through.
        """
        turns = max((stream.windows for stream in self._val), default=0)
        all_rows = [(s, n) for n in range(turns) for s, v in enumerate(self._val) if n < v.windows]
        size = self.config.global_batch_size
        batches = min(global_batches, -(-len(all_rows) // size))
        padding = [(0, self._val[0].windows)] * size  # beyond the end
        rows = (all_rows + padding)[: batches * size]
        return [batch_of([self._val[s].window(n) for s, n in mine]) for mine in self._shares(rows)]

    def state(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "sources": self._sources(),
            "taken": list(self._taken),
            "turns": list(self._blend.counts),
            "weights": list(self._weights),
            "seed": self.config.seed,
            "seq_length": self.seq_length,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken. A source that is new starts at its beginning; that is said."""
        if "taken" not in state:
            raise TrainingError(
                "the checkpoint's position in the data is of another kind of data: start a new run"
            )
        mine = {**self.state(), "samples": 0, "taken": 0, "turns": 0}
        same = mine == {**state, "samples": 0, "taken": 0, "turns": 0}
        if not same and self._says:
            changed = [key for key in mine if mine[key] != state.get(key, 0) and mine[key] != 0]
            print(
                f"warning: the checkpoint was trained on other data ({', '.join(changed)} differ): "
                "sources that are still there go on, with turns counted anew",
                flush=True,
            )
        taken = dict(zip(state["sources"], state["taken"], strict=True))
        self.samples = state["samples"]
        self._taken = [taken.get(source, 0) for source in self._sources()]
        self._blend = Blend(self._weights)
        if same:
            self._blend.counts = list(state["turns"])

    @property
    def tokenizer(self) -> Tokenizer:
        """That of the tokens."""
        if self.config.tokenizer is not None:
            return load_tokenizer(self.config.tokenizer)
        return self._train[0].files.load_tokenizer()

    @property
    def is_bytes(self) -> bool:
        """Whether the tokens are those of the bundled tokenizer."""
        return self._train[0].files.tokenizer["fingerprint"] == ByteTokenizer.fingerprint

    def _open_streams(self, ranks: World, paths: list[str | Path | None]) -> None:
        config = self.config
        val_paths = [path for path, _ in _weighted(config.val_path)] if config.val_path else []
        opened = first_then_all(ranks, lambda: [self._open(path) for path in (*paths, *val_paths)])
        _check_tokens(config.tokenizer, opened)
        if ranks.first:
            for text in filter(None, map(bad_lines, opened)):
                print(text, flush=True)
        parts = [split(files, 0 if val_paths else config.val_fraction) for files in opened]
        train = [self._stream(files, ranges) for files, (ranges, _) in zip(opened, parts, strict=True)]
        val = [self._stream(files, ranges) for files, (_, ranges) in zip(opened, parts, strict=True)]
        self._train = train[: len(paths)]
        self._val = train[len(paths) :] or val

    def _next(self) -> tuple[int, int]:
        """The source of the next sequence, and which of that source it is, counted over epochs."""
        source = self._blend.next()
        nth = self._taken[source]
        self._taken[source] += 1
        self.samples += 1
        return source, nth

    def _shares(self, rows: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
        for places in shares(len(rows), self.config.rows, self.rank, self.ranks):
            yield [rows[place] for place in places]

    def _order(self, source: int, nth: int) -> int:
        epoch, place = divmod(nth, self._train[source].whole_windows)
        return self._shuffle(source, epoch)[place]

    @functools.lru_cache(maxsize=64)  # noqa: B019 - one instance a run
    def _shuffle(self, source: int, epoch: int) -> Shuffle:
        return Shuffle(self._train[source].whole_windows, self.config.seed, epoch)

    def _stream(self, files: TokenFiles, ranges: Any) -> Stream:
        return Stream(files, ranges, self.seq_length, self.config.reset_positions)

    def _sources(self) -> list[str]:
        """What tells the sources apart; one that is given twice, too."""
        prints = [stream.files.fingerprint for stream in self._train]
        return [f"{one}#{prints[:place].count(one)}" for place, one in enumerate(prints)]

    def _open(self, path: str | Path | None) -> TokenFiles:
        if is_tokenised(path):
            return open_tokens(str(path))
        config = self.config
        encoder = DocumentEncoder(load_tokenizer(config.tokenizer), config.text_key)
        files = files_of(path, "data.path")
        return cached(files, encoder, config.cache_dir, config.skip_bad, f"data.path={describe(path)}")


def _weighted(path: Any) -> list[tuple[str | Path | None, float | None]]:
    """Sources and their weights; a weight of None is the source's size."""
    if isinstance(path, dict):
        return list(path.items())
    return [(one, None) for one in (path if isinstance(path, list) else [path])]


def _check_tokens(wanted: str | Path | None, opened: list[TokenFiles]) -> None:
    """All sources must have the same tokens. Raises TrainingError."""
    name, fingerprint = opened[0].tokenizer["name"], opened[0].tokenizer["fingerprint"]
    if wanted is not None:
        tokenizer = load_tokenizer(wanted)
        name, fingerprint = tokenizer.name, tokenizer.fingerprint
    for files in opened:
        if files.tokenizer["fingerprint"] != fingerprint:
            raise TrainingError(
                f"{files.folder} was made with the tokenizer {files.tokenizer['name']}, and not with {name}: "
                "set data.tokenizer to the one that all sources were made with, or tokenise them again"
            )
