"""Saving while training goes on, and going on from the newest checkpoint that is whole."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.optim import Optimizer

from nemorun.training.checkpoint import folder as folders
from nemorun.training.checkpoint.reader import Reader
from nemorun.training.checkpoint.staging import StagedPlanner, Staging, free_memory
from nemorun.training.checkpoint.state import RunState, local
from nemorun.training.checkpoint.writer import Writer
from nemorun.training.config import CheckpointConfig
from nemorun.training.distributed import Ranks
from nemorun.training.errors import TrainingError
from nemorun.training.progress import say

#: A rank may write long before the others: they wait for it in the background.
_PATIENCE = timedelta(hours=2)


class Checkpointer:
    """Saves and restores one run in `folder`. All ranks make it, and each call but `stall`.

    models: the model, or this rank's pieces of it. optimizers: all that train them. Names must be global:
    two ranks that have a parameter of one name hold parts or copies of one.
    trainable_only: weights that are not trained are neither saved nor loaded (LoRA over a base).
    """

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig,
        models: nn.Module | Sequence[nn.Module],
        optimizers: Optimizer | Sequence[Optimizer],
        ranks: Ranks,
        *,
        trainable_only: bool = False,
    ) -> None:
        self.folder = folder
        self.config = config
        self.ranks = ranks
        models = [models] if isinstance(models, nn.Module) else models
        optimizers = [optimizers] if isinstance(optimizers, Optimizer) else optimizers
        # Its own group: what is exchanged in the background must not meet what training exchanges.
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        self._state = RunState(models, optimizers, ranks, trainable_only, self._group)
        self._staging = Staging(ranks.device, optimizers) if config.asynchronous else None
        self._preparing: threading.Thread | None = None
        self._writing: threading.Thread | None = None
        self._problem: TrainingError | None = None
        self._seconds_held_up = 0.0

    def prepare(self) -> None:
        """Take the memory for asynchronous saves in the background; call it once, after the first step.

        Without it the first save takes it, and training waits for that.
        """
        if self._staging and not self._preparing:
            tensors = self._state.saved()
            if not self._has_room(tensors):
                return
            self._preparing = threading.Thread(target=self._staging.prepare, args=(tensors,), daemon=True)
            self._preparing.start()

    def save(self, step: int, state: dict[str, Any], *, needed: bool = False) -> float:
        """Save the state after `step`; `state` is what JSON can hold, equal on all ranks.

        Returns how many seconds training waited on the host: for the save before this one to end, and for
        the copies to be ordered. The rest happens in the background. A failure there is warned of when it
        happens, and `finish()` raises it; older checkpoints stay.
        needed: return when it is on disk; raise TrainingError, on every rank, where it could not be written.
        """
        start = time.perf_counter()
        self._join()
        tensors = self._state.saved()
        if needed or not self._can_stage(tensors):
            if self.ranks.device.type == "cuda":
                torch.cuda.current_stream().synchronize()
            self._write(step, state, tensors, None, needed)
            if needed:
                self.finish()
        else:
            assert self._staging
            copies = self._staging.copy(tensors)
            self._writing = threading.Thread(
                target=self._write, args=(step, state, tensors, copies), daemon=True
            )
            self._writing.start()
        self._seconds_held_up = time.perf_counter() - start
        return self._seconds_held_up

    def stall(self) -> float:
        """Seconds that the last save held up training: what `save` returned, and the device's waiting before
        the update after it. To be asked for when that update is done, as it is when its loss is known."""
        return self._seconds_held_up + (self._staging.seconds_waited() if self._staging else 0.0)

    def finish(self) -> None:
        """Wait for the save under way; raise TrainingError where the last one failed."""
        self._join()
        problem, self._problem = self._problem, None
        if problem:
            raise problem

    def close(self) -> None:
        """Wait for the save under way. How it ended has been said."""
        self._join()

    def restore(self) -> dict[str, Any] | None:
        """Load the newest whole checkpoint into the models, the optimizers and the random state.

        Returns the `state` it was saved with, and `step`; None where there is no checkpoint. A damaged one is
        put aside with a warning, and the one before it is taken. Raises TrainingError where all are damaged,
        or where it is of another model.
        """
        found = self._from_first(self._candidates)
        for step in found:
            path = folders.path_of(self.folder, step)
            problem, state = self._verify(path)
            if problem is None:
                self._load(path, state)
                return state
            if self.ranks.first:
                aside = folders.put_aside(path)
                say(f"warning: checkpoint {path} is damaged ({problem}): it is now called {aside.name}")
        if found:
            raise TrainingError(
                f"every checkpoint in {self.folder} is damaged. Without that folder the run starts anew"
            )
        return None

    def _candidates(self) -> list[int]:
        """The steps that can be gone on from, newest first, and the folder tidied for it."""
        self._tidy()
        return [folders.step_of(path) for path in reversed(folders.complete(self.folder))]

    def _verify(self, path: Path) -> tuple[str | None, dict[str, Any]]:
        """What is wrong with a checkpoint, and its state; the ranks read its files together."""
        problem, state = self._from_first(lambda: folders.examine(path))
        if problem:
            return problem, {}
        by_size = sorted(state["files"].items(), key=lambda file: file[1][0])
        share = dict(by_size[self.ranks.rank :: self.ranks.world_size])
        unseen = [name for name in share if not (path / name).exists()]
        mine = f"unseen {unseen[0]}" if unseen else folders.damage_of_files(path, share)
        problems: list[str | None] = [None] * self.ranks.world_size
        dist.all_gather_object(problems, mine, group=self._group)
        for rank, problem in enumerate(problems):
            if problem and problem.startswith("unseen "):
                raise TrainingError(
                    f"rank {rank} does not see {path / problem.removeprefix('unseen ')}, which the first "
                    "rank sees: checkpoints must be in a folder that all nodes share. Set checkpoint.dir"
                )
        return next(filter(None, problems), None), state

    def _load(self, path: Path, state: dict[str, Any]) -> None:
        try:
            reader = Reader(path)
            saved = {
                name: tuple(tensor.size)
                for name, tensor in reader.metadata.state_dict_metadata.items()
                if isinstance(tensor, TensorStorageMetadata)
            }
            weights = {k.removeprefix("model."): v for k, v in saved.items() if k.startswith("model.")}
            self._state.refuse_another_model(path, weights, state["trainable_only"])

            def read(tensors: dict[str, Tensor]) -> None:
                planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
                dcp.load(tensors, storage_reader=reader, planner=planner, process_group=self._group)

            self._state.load(read, set(saved), state["ranks"] == self._state.kind())
        except (CheckpointException, OSError, ValueError, KeyError) as error:
            raise TrainingError(f"checkpoint {path} cannot be loaded{_because(error)}") from error

    def _can_stage(self, tensors: dict[str, Tensor]) -> bool:
        """Whether the host has room for the copies. Where not, it is said, and saves hold up training."""
        if not self._staging:
            return False
        if self._preparing:
            self._preparing.join()
        elif not self._staging.prepared:
            return self._has_room(tensors)
        return True

    def _has_room(self, tensors: dict[str, Tensor]) -> bool:
        """Whether every host has memory for a copy. Where not, it is said, and saves are synchronous."""
        needed = sum(local(tensor).nbytes for tensor in tensors.values())
        needed *= int(os.environ.get("LOCAL_WORLD_SIZE", self.ranks.world_size))
        if self.ranks.all(needed < free_memory()):
            return True
        if self.ranks.first:
            say(
                f"warning: this host has no room for a copy of the state ({needed / 2**30:,.0f} GiB for its "
                "ranks): training waits until checkpoints are written, as with checkpoint.asynchronous=False"
            )
        self._staging = None
        return False

    def _write(
        self,
        step: int,
        state: dict[str, Any],
        tensors: dict[str, Tensor],
        copies: dict[str, Tensor] | None,
        needed: bool = False,
    ) -> None:
        """Write one checkpoint, here or in the background; `self._problem` tells how it ended."""
        final = folders.path_of(self.folder, step)
        partial = final.with_name(final.name + ".tmp")
        known = {"step": step, "ranks": self._state.kind(), "trainable_only": self._state.trainable_only}

        def publish(files: dict[str, list[int]]) -> None:
            folders.publish(partial, final, {**known, **state}, files)

        self._problem = None
        try:
            if copies is not None and self._staging:
                self._staging.wait()
            dcp.save(
                tensors,
                storage_writer=Writer(partial, self.ranks.rank, publish),
                planner=StagedPlanner(copies),
                process_group=self._group,
            )
        except (CheckpointException, Exception) as error:  # noqa: BLE001 - kept for the thread that waits
            self._problem = TrainingError(f"checkpoint {final} could not be written{_because(error)}")
            self._problem.__cause__ = error
        if self.ranks.first:
            if self._problem:
                shutil.rmtree(partial, ignore_errors=True)
                if not needed:  # else it is raised
                    say(
                        f"warning: {self._problem}. Training goes on; the last good checkpoint is still there"
                    )
            self._tidy()

    def _join(self) -> None:
        if self._writing:
            self._writing.join()
            self._writing = None

    def _tidy(self) -> None:
        folders.tidy(self.folder, self.config.keep_last, self.config.keep_every)

    def _from_first(self, ask: Any) -> Any:
        """What the first rank finds: the ranks must not differ."""
        answer: list[Any] = [None, None]
        if self.ranks.first:
            try:
                answer = [ask(), None]
            except OSError as error:
                answer = [None, f"{self.folder}: {error}"]
        dist.broadcast_object_list(answer, src=0, group=self._group)
        if answer[1]:
            raise TrainingError(f"checkpoints cannot be read: {answer[1]}")
        return answer[0]


def _because(problem: BaseException) -> str:
    """`: the reason` in one line; of a failure on several ranks, the first one's."""
    if isinstance(problem, CheckpointException):
        problem = next(iter(problem.failures.values()))[0]
    return f": {problem}"
