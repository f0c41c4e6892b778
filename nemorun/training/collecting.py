"""Garbage is collected between steps, on all ranks after the same one.

Left alone, Python collects when it has made enough objects: on each rank in the middle of another step, which
all other ranks then wait for.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator

INTERVAL = 50
"""Steps between two collections of what is young."""
_WHOLE = 20 * INTERVAL
"""Steps between two that look at all that was made since the start."""


@contextlib.contextmanager
def collected_by_hand() -> Iterator[Callable[[int], None]]:
    """Within it Python collects by itself no more; what it gives is to be called after each step.

    What is there at the start (modules, the model) is never looked at again until the end.
    """
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield _collect
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()


def _collect(step: int) -> None:
    if step % INTERVAL == 0:
        gc.collect(2 if step % _WHOLE == 0 else 1)
