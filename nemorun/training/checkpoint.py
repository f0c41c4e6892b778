"""Checkpoints that are complete or not there: written beside their name, synced, and renamed.

A checkpoint is a folder `step-00000100` with the files of torch.distributed.checkpoint (each rank writes its
own part of weights, optimizer and random state) and `state.json` (step, data position, sizes of the files).
Until all of it is on disk the folder is called `step-00000100.tmp`: a killed save leaves the one before it.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from enum import EnumMeta
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from nemorun.training.distributed import Ranks
from nemorun.training.errors import TrainingError
from nemorun.training.progress import say

_COMPLETE = re.compile(r"step-(\d+)")
_INDEX_CLASSES = (
    "BytesStorageMetadata",
    "ChunkStorageMetadata",
    "Metadata",
    "MetadataIndex",
    "StorageMeta",
    "TensorProperties",
    "TensorStorageMetadata",
    "_MEM_FORMAT_ENCODING",
)
_NONE, _ALL_DAMAGED = -1, -2
_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def complete(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first; what a killed save left is none."""
    found = {
        int(match[1]): path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := _COMPLETE.fullmatch(path.name))
    }
    return [found[step] for step in sorted(found)]


def damage(checkpoint: Path) -> str | None:
    """What is wrong with the files of a checkpoint: missing, of another size, unreadable. None: nothing."""
    try:
        for name, size in json.loads((checkpoint / "state.json").read_text())["files"].items():
            if (found := (checkpoint / name).stat().st_size) != size:
                return f"{name} has {found:,} bytes instead of {size:,}"
    except (OSError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return None


class Checkpointer:
    """Saves and restores one run in `folder`. Every rank must make each call."""

    def __init__(
        self, folder: Path, keep_last: int, model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks
    ) -> None:
        self.folder = folder
        self.keep_last = keep_last
        self.model = model
        self.optimizer = optimizer
        self.ranks = ranks

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the checkpoint of `step`; `state` is what JSON can hold, equal on all ranks.

        Raises TrainingError, on every rank, where any of them could not write; older checkpoints stay.
        """
        final = self.folder / f"step-{step:08d}"
        partial = final.with_name(final.name + ".tmp")
        problem: BaseException | None = None
        try:
            # Each rank's file and the index, which is written last, are synced to disk.
            dcp.save(self._tensors(), storage_writer=dcp.FileSystemWriter(partial, sync_files=True))
            if self.ranks.first:
                _publish(partial, final, {"step": step, "ranks": self._kind(), **state})
        except (CheckpointException, OSError) as error:
            problem = error
        if not self.ranks.all(problem is None):
            if self.ranks.first:
                shutil.rmtree(partial, ignore_errors=True)
            raise TrainingError(f"checkpoint {final} could not be written{_because(problem)}") from problem
        if self.ranks.first:
            self._tidy()
        return final

    def restore(self) -> dict[str, Any] | None:
        """Load the newest whole checkpoint into the model, the optimizer and the random state.

        Returns its `state`, or None where there is none. A damaged one is put aside with a warning, and the
        one before it is taken. Raises TrainingError where all are damaged, or where it is of another model.
        """
        # The first rank chooses for all: they must not differ.
        chosen = self._newest_whole() if self.ranks.first else 0
        step = int(self.ranks.sum(chosen)[0])
        if step == _NONE:
            return None
        if step == _ALL_DAMAGED:
            raise TrainingError(
                f"every checkpoint in {self.folder} is damaged. Without that folder the run starts anew"
            )
        latest = self.folder / f"step-{step:08d}"
        try:
            state = json.loads((latest / "state.json").read_text())
            tensors = self._tensors(with_random_state=state["ranks"] == self._kind())
            reader = SafeReader(latest)
            _refuse_another_model(latest, reader.read_metadata(), tensors)
            dcp.load(tensors, storage_reader=reader)
        except (CheckpointException, OSError, ValueError, KeyError) as error:
            raise TrainingError(f"checkpoint {latest} cannot be loaded{_because(error)}") from error
        self._take(tensors)
        return state

    def _newest_whole(self) -> int:
        """The step to go on from, and the folder tidied for it."""
        self._tidy()
        found = complete(self.folder)
        problems = {path: problem for path in found if (problem := damage(path))}
        whole = [path for path in found if path not in problems]
        if not whole:
            return _ALL_DAMAGED if found else _NONE
        for path in found[found.index(whole[-1]) + 1 :]:
            aside = path.with_name(path.name + ".damaged")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            say(f"warning: checkpoint {path} is damaged ({problems[path]}): it is now called {aside.name}")
        return int(whole[-1].name.removeprefix("step-"))

    def _kind(self) -> str:
        """Ranks of the same kind have the same random states."""
        return f"{self.ranks.world_size} x {self.ranks.device.type}"

    def _tensors(self, with_random_state: bool = True) -> dict[str, Any]:
        """All that is saved, by name; not hyper-parameters: a resumed run takes its configuration's."""
        state: dict[str, Any] = {f"model.{k}": v for k, v in get_model_state_dict(self.model).items()}
        moments = get_optimizer_state_dict(self.model, self.optimizer, options=_FLAT)
        state |= {f"optimizer.{k}": v for k, v in moments.items() if k.startswith("state.")}
        if with_random_state:
            state[f"random.{self.ranks.rank}.cpu"] = torch.get_rng_state()
            if self.ranks.device.type == "cuda":
                state[f"random.{self.ranks.rank}.cuda"] = torch.cuda.get_rng_state()
        return state

    def _take(self, tensors: dict[str, Any]) -> None:
        def part(prefix: str) -> dict[str, Any]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        set_model_state_dict(self.model, part("model."))
        hyper_parameters = get_optimizer_state_dict(self.model, self.optimizer, options=_FLAT)
        set_optimizer_state_dict(
            self.model, self.optimizer, hyper_parameters | part("optimizer."), options=_FLAT
        )
        random = part(f"random.{self.ranks.rank}.")
        if "cpu" in random:
            torch.set_rng_state(random["cpu"])
        if "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"])

    def _tidy(self) -> None:
        """Delete what killed saves left, and all but the last `keep_last` checkpoints."""
        for old in complete(self.folder)[: -self.keep_last]:
            # Renamed first: half a checkpoint must not look like a whole one if this is killed.
            old.rename(old.with_name(old.name + ".tmp"))
        for partial in self.folder.glob("step-*.tmp"):
            shutil.rmtree(partial)


class SafeReader(dcp.FileSystemReader):
    """torch's reader, apart from the index: torch unpickles `.metadata` as it is, which can run any code.

    Here only the classes that an index is made of can come out of it. The tensors are read by torch with
    `weights_only=True`.
    """

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata = _IndexUnpickler(file).load()
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _IndexUnpickler(pickle.Unpickler):
    """Builds plain data and these classes, none of which does anything when it is built."""

    _ALLOWED = frozenset(
        {
            *(("torch.distributed.checkpoint.metadata", name) for name in _INDEX_CLASSES),
            ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
            ("torch", "Size"),
            ("torch.serialization", "_get_layout"),
            ("pathlib", "PosixPath"),
            ("pathlib._local", "PosixPath"),  # its name in Python 3.13
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._ALLOWED:
            return super().find_class(module, name)
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if (module, name) == ("builtins", "getattr"):
            return _enum_member
        raise ValueError(f"its index names {module}.{name}, which no index needs: do not trust this file")


def _enum_member(enum: Any, name: str) -> Any:
    """What `getattr` is to an index: the early Pythons 3.11 write an enum's member so."""
    if isinstance(enum, EnumMeta) and name in enum.__members__:
        return enum.__members__[name]
    raise ValueError(f"its index reads {enum}.{name}, which no index needs: do not trust this file")


def _refuse_another_model(checkpoint: Path, index: Metadata, tensors: dict[str, Any]) -> None:
    """torch would load what is in both, and say nothing of layers that only the checkpoint has."""
    saved = {
        k: tuple(v.size)
        for k, v in index.state_dict_metadata.items()
        if k.startswith("model.") and isinstance(v, TensorStorageMetadata)
    }
    ours = {k: tuple(v.shape) for k, v in tensors.items() if k.startswith("model.")}
    for name in [*ours, *saved]:
        if saved.get(name) != ours.get(name):
            raise TrainingError(
                f"checkpoint {checkpoint} is of another model: {name.removeprefix('model.')} is "
                f"{saved.get(name, 'missing')} there and {ours.get(name, 'missing')} here. "
                "Set the model as it was, or use another folder for the results or for the checkpoints"
            )


def _publish(partial: Path, final: Path, state: dict[str, Any]) -> None:
    state["files"] = {path.name: path.stat().st_size for path in partial.iterdir()}
    with (partial / "state.json").open("w") as file:
        json.dump(state, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(partial)
    partial.rename(final)
    _sync_folder(final.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _because(problem: BaseException | None) -> str:
    """`: the reason` in one line; of a failure on several ranks, the first one's."""
    if isinstance(problem, CheckpointException):
        problem = next(iter(problem.failures.values()))[0]
    return f": {problem}" if problem else " by another rank"
