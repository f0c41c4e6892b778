"""What follows from a GPU's memory where the settings leave it open: the micro-batch, when gradients are
exchanged, and what is computed again; torch-free.

What is learnt does not depend on it: the global batch is the same, and its loss is divided by all its tokens
at once. But ranks exchange gradients with each micro-batch, and so less often the larger it is; or, where a
GPU has room for whole sums of them, once a step. What is kept need not be computed again.
"""

from __future__ import annotations

from dataclasses import replace

from nemorun.llm.fits import DOUBT, Change, Run
from nemorun.training.config import Recompute

ENOUGH = 16_384
"""Tokens in a rank's forward pass that make its matrix products long enough to hide exchanges behind them."""
ROOM = 1 / 6
"""Share of a GPU that stays free by the estimate: FSDP's buffers go from one stream to another, for which
torch's allocator held up to a seventh of an H200 beside what was in use."""
ROOM_WITHOUT_EXCHANGES = 1 / 32
"""The same where gradients are exchanged once a step: it held a fiftieth."""


def settled(run: Run, capacity: float | None) -> Run:
    """The run with `trainer.sync_each_micro_batch`, `trainer.recompute` and `data.micro_batch_size` given.

    Gradients are exchanged once a step if there is room on a GPU with `capacity` bytes. With that nothing is
    computed again if there is room, and whole blocks if else the run does not fit. With both the micro-batch
    is one, doubled while its forward pass has no more than ENOUGH tokens, there is room and the global batch
    can be divided so. One without a GPU (None), and in a pipeline, which is the fuller the more there are.
    """
    found = replace(run, data=replace(run.data, micro_batch_size=run.data.rows))
    found = _synced(_recomputing(found, run.trainer.recompute or "selective"), capacity)
    if run.trainer.recompute is None:
        found = _recomputing(found, _least(found, capacity))
    if run.data.micro_batch_size is not None or capacity is None or run.parallelism.pipeline_parallel > 1:
        return found
    length = (run.data.seq_length or run.model.seq_length) // run.parallelism.context_parallel
    while 2 * found.data.rows * length <= ENOUGH:
        more = found.changed(Change("data", "micro_batch_size", 2 * found.data.rows))
        if more is None or not _has_room(more, capacity):
            break
        found = more
    return found


def _synced(run: Run, capacity: float | None) -> Run:
    if run.trainer.sync_each_micro_batch is not None:
        return run
    ranks = run.trainer.num_nodes * run.trainer.devices
    several = run.data.global_batch_size > run.data.rows * run.parallelism.data_ranks(ranks)
    once = run.changed(Change("trainer", "sync_each_micro_batch", False))
    if ranks > 1 and several and once and capacity is not None and _has_room(once, capacity):
        return once
    return replace(run, trainer=replace(run.trainer, sync_each_micro_batch=True))


def _least(run: Run, capacity: float | None) -> Recompute:
    """What has to be computed again in a run that is given as one that keeps only products."""
    # What would be kept of trained matrices in float8 has not been measured.
    trains_float8 = run.trainer.precision == "fp8-mixed" and not run.model.lora.enabled
    if capacity is None or (not trains_float8 and _has_room(_recomputing(run, "none"), capacity)):
        return "none"
    return "selective" if run.share(capacity) <= 1 - DOUBT else "full"


def _recomputing(run: Run, kind: Recompute) -> Run:
    return replace(run, trainer=replace(run.trainer, recompute=kind))


def _has_room(run: Run, capacity: float) -> bool:
    exchanges = run.trainer.sync_each_micro_batch is not False
    return run.share(capacity) <= 1 - (ROOM if exchanges else ROOM_WITHOUT_EXCHANGES)
