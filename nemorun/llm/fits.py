"""Does a run fit its GPUs? Judged by the estimate, with what to change where it does not; torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from nemorun.errors import ConfigError
from nemorun.llm.config import GPTConfig
from nemorun.llm.data.config import DataConfig, FinetuneDataConfig
from nemorun.llm.memory import GIB, OUTSIDE, Memory
from nemorun.llm.peak import peak_memory, stage_memory
from nemorun.training.config import OptimConfig, ParallelismConfig, TrainerConfig, check_layout

DOUBT = 0.05
"""How far the estimate may be off: this near to the card's memory a run is warned of and not refused."""


@dataclass(frozen=True)
class Run:
    """The settings that memory depends on."""

    model: GPTConfig
    trainer: TrainerConfig
    data: DataConfig | FinetuneDataConfig
    optim: OptimConfig
    parallelism: ParallelismConfig

    def memory(self, stage: int | None = None) -> Memory:
        """The peak of a stage's ranks. None: of the stage that needs most."""
        settings = (self.model, self.trainer, self.data, self.optim, self.parallelism)
        return peak_memory(*settings) if stage is None else stage_memory(*settings, stage)

    def share(self, capacity: float, stage: int | None = None) -> float:
        """What it needs of a GPU with `capacity` bytes; 1.0 is all of it."""
        return (self.memory(stage).total + OUTSIDE) / capacity

    def changed(self, change: Change) -> Run | None:
        """The run after a change, or None where that cannot be."""
        run = replace(
            self, **{change.part: replace(getattr(self, change.part), **{change.name: change.value})}
        )
        try:
            check_layout(run.trainer, run.parallelism, run.data.global_batch_size, run.data.rows)
            run.model.check_parallelism(run.parallelism, run.data.seq_length)
        except ConfigError:
            return None
        return run


@dataclass(frozen=True)
class Change:
    """One setting, as it is written on a command line."""

    part: str
    name: str
    value: Any

    def __str__(self) -> str:
        return f"{self.part}.{self.name}={self.value}"


def refusal(run: Run, capacity: float, stage: int | None = None) -> str | None:
    """Why a GPU with `capacity` bytes cannot hold the run, and what would help. None: it may."""
    if run.share(capacity, stage) <= 1 + DOUBT:
        return None
    found = suggestions(run, capacity)
    advice = "; or ".join(" ".join(map(str, changes)) for changes in found)
    return (
        f"the run needs about {_needs(run, stage)}, and a GPU has {capacity / GIB:.1f} GiB, of which "
        f"{OUTSIDE / GIB:.1f} are CUDA's and NCCL's. "
        + (f"It fits with {advice}" if advice else "No change of recomputation or of the layout is enough")
        + ". To try it all the same, set trainer.gpu_memory_gib to more than that"
    )


def warning(run: Run, capacity: float, stage: int | None = None) -> str | None:
    """What to say of a run that is so near to the card's memory that the estimate cannot tell."""
    if not 1 - DOUBT <= run.share(capacity, stage) <= 1 + DOUBT:
        return None
    return (
        f"this may not fit: about {_needs(run, stage)} and {OUTSIDE / GIB:.1f} GiB of CUDA and NCCL are, "
        f"within {DOUBT:.0%}, as much as a GPU has ({capacity / GIB:.1f} GiB)"
    )


def _needs(run: Run, stage: int | None) -> str:
    memory = run.memory(stage)
    where = f"stage {memory.stage} of the pipeline, " if run.parallelism.pipeline_parallel > 1 else ""
    return f"{memory.describe()} at its peak ({where}{memory.moment})"


def suggestions(run: Run, capacity: float) -> list[list[Change]]:
    """Changes after which the run fits, those that cost least first; each entry is enough by itself.

    Where no single one is enough, or more nodes alone are, they are taken together, in that order, as far as
    each helps.
    """
    enough: dict[str, list[Change]] = {}
    for change in (*_changes(run), *_more_nodes(run)):
        changed = run.changed(change)
        if changed and changed.share(capacity) <= 1 - DOUBT:
            enough.setdefault(change.name, [change])  # the first is the smallest
    if enough.keys() <= {"num_nodes"}:
        return [*_together(run, capacity), *enough.values()]
    return list(enough.values())


def _together(run: Run, capacity: float) -> list[list[Change]]:
    taken: dict[str, Change] = {}
    for change in _changes(run):
        changed = run.changed(change)
        if changed is None or changed.share(capacity) >= run.share(capacity):
            continue
        run = changed
        taken[change.name] = change
        if run.share(capacity) <= 1 - DOUBT:
            return [list(taken.values())]
    return []


def _changes(run: Run) -> Iterator[Change]:
    """From the cheapest: what is done twice, rounded moments, smaller products, more waiting, exchanges."""
    if run.trainer.sync_each_micro_batch is False:
        yield Change("trainer", "sync_each_micro_batch", True)
    if not run.trainer.reshard_after_forward:
        yield Change("trainer", "reshard_after_forward", True)
    kinds = ("none", "selective", "full")
    for kind in kinds[kinds.index(run.trainer.recompute or "none") + 1 :]:
        yield Change("trainer", "recompute", kind)
    if run.optim.moments == "fp32":
        yield Change("optim", "moments", "bf16")
    rows = run.data.rows
    while rows > 1:
        rows //= 2
        yield Change("data", "micro_batch_size", rows)
    if run.parallelism.virtual_pipeline > 1:
        yield Change("parallelism", "virtual_pipeline", 1)
    for name in ("tensor_parallel", "pipeline_parallel"):
        ranks = getattr(run.parallelism, name)
        while ranks < 8:
            ranks *= 2
            yield Change("parallelism", name, ranks)


def _more_nodes(run: Run) -> Iterator[Change]:
    for factor in (2, 4, 8, 16):
        yield Change("trainer", "num_nodes", run.trainer.num_nodes * factor)
