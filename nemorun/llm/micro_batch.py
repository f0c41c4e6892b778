"""How many sequences a forward pass takes where `data.micro_batch_size` leaves that open; torch-free.

More of them share one gathering of weights and one sending of gradients, and take more memory. What is learnt
does not depend on it: the global batch is the same, and its loss is divided by all its tokens at once.
"""

from __future__ import annotations

from dataclasses import replace

from nemorun.llm.fits import Change, Run

ENOUGH = 16_384
"""Tokens in a rank's forward pass that make its matrix products long enough to hide exchanges behind them."""
ROOM = 1 / 6
"""Share of a GPU that stays free by the estimate: FSDP's buffers go from one stream to another, for which
torch's allocator held up to a seventh of an H200 beside what was in use."""


def settled(run: Run, capacity: float | None) -> Run:
    """The run with a number in `data.micro_batch_size`.

    One, doubled while the forward pass has no more than ENOUGH tokens, ROOM is left of a GPU with `capacity`
    bytes and the global batch can be divided so. One without a GPU (None), and in a pipeline, which is the
    fuller the more micro-batches there are.
    """
    if run.data.micro_batch_size is not None:
        return run
    found = replace(run, data=replace(run.data, micro_batch_size=1))
    if capacity is None or run.parallelism.pipeline_parallel > 1:
        return found
    length = (run.data.seq_length or run.model.seq_length) // run.parallelism.context_parallel
    while 2 * found.data.rows * length <= ENOUGH:
        more = found.changed(Change("data", "micro_batch_size", 2 * found.data.rows))
        if more is None or more.share(capacity) > 1 - ROOM:
            break
        found = more
    return found
