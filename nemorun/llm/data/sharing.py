"""The data-parallel ranks of a run and their shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from nemorun.training.errors import TrainingError

T = TypeVar("T")


class World(Protocol):
    """What data needs of `nemorun.training.distributed.Ranks`."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    @property
    def first(self) -> bool: ...

    def all(self, true: bool) -> bool:
        """Is it so on every rank? None goes on before all have answered."""


def first_then_all(ranks: World, make: Callable[[], T]) -> T:
    """`make` on the first rank, then on the others, which find what it left or make their own.

    Where the first rank fails, its TrainingError is raised there, and another that says so on the others.
    """
    problem = made = None
    if ranks.first:
        try:
            made = make()
        except TrainingError as error:
            problem = error
    if not ranks.all(problem is None):
        raise problem or TrainingError("the data cannot be read: rank 0 says why")
    return make() if made is None else made


def shares(total: int, micro_batch_size: int, rank: int, ranks: int) -> Iterator[range]:
    """This rank's micro-batches of `total` rows, as ranges of their places in the global batch."""
    for start in range(rank * micro_batch_size, total, ranks * micro_batch_size):
        yield range(start, start + micro_batch_size)
