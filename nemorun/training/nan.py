"""Gradients that are no numbers: left out on the device, noticed later, with the batch saved.

The norm of the whole gradient is the same on every rank, and is no finite number where any part of the
gradient is none. So the optimizer is given a flag to leave the step out, and nobody waits for the device: the
weights never see such a gradient, neither with on_nan=skip nor, until the run stops, with on_nan=stop. The
host reads the norms when it reads the loss, and still has the batches of these steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from nemorun.training.distributed import Ranks
from nemorun.training.errors import TrainingError
from nemorun.training.progress import say

_KEPT = 16  # Steps whose batches are kept; then the host reads their norms, whether or not it is time to log.
_SAVED = 3  # Batches that a run saves at most.
_IN_A_ROW = 10


class _Batch(Protocol):
    tokens: Tensor
    labels: Tensor
    positions: Tensor | None
    padding: Tensor | None


class NanGuard:
    """Looks at each step's gradient norm. Every rank makes one, and all make the same calls.

    folder: the results, where `nan-step-N` is made. saves: whether this rank saves its batch; of the ranks
    that read the same data one is enough.
    """

    def __init__(
        self, policy: Literal["stop", "skip"], ranks: Ranks, folder: Path, saves: bool = True
    ) -> None:
        self._policy = policy
        self._ranks = ranks
        self._folder = folder
        self._saves = saves
        self._pending: list[tuple[int, Tensor, Sequence[_Batch]]] = []
        self._in_a_row = 0
        self._found = 0

    def watch(self, step: int, norm: Tensor, batches: Sequence[_Batch]) -> Tensor:
        """Remember a step's norm and batches; returns 1.0 on the device where it is to be left out, else 0.0.

        May raise what `report` raises.
        """
        if len(self._pending) >= _KEPT:
            self.report()
        self._pending.append((step, norm.detach(), batches))
        return (~norm.detach().isfinite()).float()

    def report(self) -> list[int]:
        """The steps that were left out since the last call. It waits for the device.

        With on_nan=stop, raises TrainingError at the first one. To be called before each checkpoint, too.
        """
        if not self._pending:
            return []
        pending, self._pending = self._pending, []
        norms = torch.stack([norm for _, norm, _ in pending]).tolist()
        left_out = []
        for (step, _, batches), norm in zip(pending, norms, strict=True):
            if math.isfinite(norm):
                self._in_a_row = 0
                continue
            left_out.append(step)
            self._in_a_row += 1
            self._found += 1
            saved = self._save(step, batches) if self._found <= _SAVED else "Its batch is not saved as well"
            what = f"at step {step} the gradient's norm is {norm}"
            if self._policy == "stop":
                raise TrainingError(
                    f"stopped: {what}. {saved}. The weights are as they were before it. A lower optim.lr or "
                    "a longer optim.warmup_steps may help; trainer.on_nan=skip leaves such steps out"
                )
            if self._in_a_row >= _IN_A_ROW:
                raise TrainingError(
                    f"stopped: {what}, and so it was in the {_IN_A_ROW - 1} steps before. {saved}. "
                    "trainer.on_nan=skip is for single steps: look for the reason"
                )
            if self._ranks.first:
                say(f"warning: {what}: the step is left out. {saved}")
        return left_out

    def _save(self, step: int, batches: Sequence[_Batch]) -> str:
        """Save the batches of all ranks; returns where, as a sentence without its full stop."""
        folder = self._folder / f"nan-step-{step}"
        problem = None
        if self._saves:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                torch.save([_as_dict(b) for b in batches], folder / f"rank-{self._ranks.rank:05d}.pt")
            except (OSError, RuntimeError) as error:
                problem = error
        # None goes on, and ends the run, before all have saved.
        if not self._ranks.all(problem is None):
            return f"Its batch could not be saved in {folder}" + (f": {problem}" if problem else "")
        return (
            f"Its batch is saved in {folder} (torch.load: of each micro-batch tokens, labels, positions, "
            "padding)"
        )


def _as_dict(batch: _Batch) -> dict[str, Any]:
    return {name: getattr(batch, name) for name in ("tokens", "labels", "positions", "padding")}
