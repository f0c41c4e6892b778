"""`Trainer(max_steps=…).fit(model, dataloader)`: training in a script of one's own."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from nemorun.errors import ConfigError
from nemorun.training.batch import Batch
from nemorun.training.config import (
    CheckpointConfig,
    LogConfig,
    OptimConfig,
    ParallelismConfig,
    TrainerConfig,
    check_layout,
)
from nemorun.training.distributed import join
from nemorun.training.errors import TrainingError
from nemorun.training.loop import Loop
from nemorun.training.model import TrainableModel


class Trainer:
    """Trains a model on the ranks that `nemorun run` or torchrun has started, or on this process alone.

    Keyword arguments are the fields of `TrainerConfig` (max_steps, precision, devices, strategy, …), and
    `optim`, `parallelism`, `checkpoint` and `log` for the rest. Raises ConfigError, before anything starts,
    where a value or a combination cannot be.
    """

    def __init__(
        self,
        *,
        optim: OptimConfig | None = None,
        parallelism: ParallelismConfig | None = None,
        checkpoint: CheckpointConfig | None = None,
        log: LogConfig | None = None,
        **settings: Any,
    ) -> None:
        known = [field.name for field in dataclasses.fields(TrainerConfig)]
        for name in settings:
            if name not in known:
                raise ConfigError(f"Trainer has no {name!r}: it takes {', '.join(known)}")
        self.config = TrainerConfig(**settings)
        self.optim = optim or OptimConfig()
        self.parallelism = parallelism or ParallelismConfig()
        self.checkpoint = checkpoint or CheckpointConfig()
        self.log = log or LogConfig()
        for part in (self.config, self.optim, self.parallelism, self.checkpoint):
            part.validate()

    def fit(
        self,
        model: TrainableModel,
        train_dataloader: Iterable[Any],
        val_dataloader: Iterable[Any] | None = None,
    ) -> dict[str, float]:
        """Train `model` for `max_steps` steps of one batch of `train_dataloader` on each data-parallel rank.

        Args:
            model: Its weights are kept if it has any; on the meta device it gets those of the seed.
            train_dataloader: Gives batches of this data-parallel rank, over and over: `Batch`, a mapping
                with `tokens` (or `input_ids`) and `labels`, or a pair of the two, each [B, S] int64, the
                label being the token that follows. A pipeline takes its rows as micro-batches, as many as it
                has stages. A resumed run skips what it has taken before.
            val_dataloader: The same, to validate on.

        Returns:
            The last metrics, such as `loss`. The weights are then in `model`, if this is the only rank.
        """
        stages = self.parallelism.pipeline_parallel
        world = self.config.num_nodes * self.config.devices
        rows = max(1, self.parallelism.data_ranks(world)) * stages
        check_layout(self.config, self.parallelism, global_batch_size=rows, micro_batch_size=1)
        with join(self.config) as ranks:
            loop = Loop(self.config, self.optim, self.parallelism, self.checkpoint, self.log, ranks)
            result = loop.fit(model, _Loader(train_dataloader, val_dataloader, stages))
            return {"step": loop.step, **result}


class _Loader:
    """A data loader as the loop's `Batches`."""

    def __init__(self, train: Iterable[Any], validation: Iterable[Any] | None, stages: int) -> None:
        self.train = train
        self.val = validation
        self.stages = stages
        """Pieces into which each batch is cut, to fill a pipeline."""
        self.taken = 0
        self._iterator = self._forever()

    def next_step(self) -> list[Batch]:
        self.taken += 1
        return _cut(next(self._iterator), self.stages)

    def validation(self, global_batches: int) -> list[Batch]:
        batches = map(_as_batch, itertools.islice(self.val or (), global_batches))
        return [piece for batch in batches for piece in _cut(batch, self.stages)]

    def state(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def restore(self, state: dict[str, Any]) -> None:
        for _ in range(state["taken"]):
            next(self._iterator)
        self.taken = state["taken"]

    def _forever(self) -> Iterator[Batch]:
        while True:
            empty = True
            for batch in self.train:
                empty = False
                yield _as_batch(batch)
            if empty:
                raise TrainingError("the data loader gives no batch")


def _cut(batch: Batch, pieces: int) -> list[Batch]:
    if len(batch.tokens) % pieces:
        raise TrainingError(
            f"a batch of {len(batch.tokens)} rows does not fill a pipeline: the rows must be a multiple of "
            f"pipeline_parallel={pieces}"
        )
    parts = [x.chunk(pieces) if x is not None else [None] * pieces for x in vars(batch).values()]
    return [Batch(*part) for part in zip(*parts, strict=True)]


def _as_batch(given: Any) -> Batch:
    if isinstance(given, Batch):
        return given
    if isinstance(given, dict):
        tokens = given.get("tokens", given.get("input_ids"))
        found = (tokens, given.get("labels"))
    elif isinstance(given, tuple | list) and len(given) == 2:
        found = tuple(given)
    else:
        found = (None, None)
    tokens, labels = found
    if not (isinstance(tokens, Tensor) and isinstance(labels, Tensor) and tokens.shape == labels.shape):
        raise TrainingError(
            "a batch of the data loader must be (tokens, labels), or a mapping with tokens and labels: two "
            f"tensors of one shape [B, S]. It is {_describe(given)}"
        )
    return Batch(tokens, labels)


def _describe(given: Any) -> str:
    if isinstance(given, dict):
        return f"a mapping with {', '.join(map(str, given)) or 'nothing'}"
    if isinstance(given, tuple | list):
        return f"{len(given)} of {', '.join(sorted({type(part).__name__ for part in given}))}"
    return f"a {type(given).__name__}"
