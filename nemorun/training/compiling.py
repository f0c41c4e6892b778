"""Small functions that a GPU should run as one kernel."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

HAS_TRITON = importlib.util.find_spec("triton") is not None
"""What kernels for GPUs are written in, by torch's compiler and by us. Without it, plain operators run."""

P = ParamSpec("P")
T = TypeVar("T")


def fused(dynamic: bool | None = None) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """The function, compiled where its first argument is on a GPU; elsewhere it runs as it stands.

    `dynamic`: True for one kernel for all shapes. None makes one for the first shape, whose sizes it knows as
    numbers, and where other shapes come, one for all sizes that differ.
    """

    def compiled_on_gpus(function: Callable[P, T]) -> Callable[P, T]:
        compiled: list[Callable[P, T]] = []

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            first = args[0]
            if not (isinstance(first, Tensor) and first.device.type == "cuda" and HAS_TRITON):
                return function(*args, **kwargs)
            if not compiled:  # not before: the compiler takes a second to import
                compiled.append(torch.compile(function, dynamic=dynamic))
            return compiled[0](*args, **kwargs)

        return call

    return compiled_on_gpus
