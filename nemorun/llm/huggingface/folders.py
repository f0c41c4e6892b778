"""A folder that appears whole or not at all, written by the first rank while the others take part."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from nemorun.llm.huggingface.gathering import Gatherer


class Target:
    """The folder that is being written, on the first rank; on the others every call does nothing."""

    def __init__(self, folder: Path, writes: bool, overwrite: bool) -> None:
        self.folder = folder.expanduser().absolute()
        self.partial = self.folder.with_name(f".{self.folder.name}.partial")
        self.problem: str | None = None
        """What went wrong first. The ranks go on to the end together, and are told then."""
        self._writes = writes
        self._overwrite = overwrite

    def save(self, name: str, tensors: dict[str, Tensor]) -> None:
        with self._attempt() as wanted:
            if wanted:
                save_file(tensors, self.partial / name, metadata={"format": "pt"})
                _sync(self.partial / name)

    def write_json(self, name: str, value: object) -> None:
        with self._attempt() as wanted:
            if wanted:
                (self.partial / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
                _sync(self.partial / name)

    def copy(self, source: Path, names: Iterable[str]) -> None:
        """Those of the files that are there."""
        with self._attempt() as wanted:
            for name in names if wanted else ():
                if (source / name).is_file():
                    shutil.copyfile(source / name, self.partial / name)

    def begin(self) -> None:
        with self._attempt() as wanted:
            if wanted and self.folder.exists() and not self._overwrite:
                self.problem = f"{self.folder} exists already: name a new folder, or remove it first"
            elif wanted:
                shutil.rmtree(self.partial, ignore_errors=True)  # of a run that was killed
                self.partial.mkdir(parents=True)

    def publish(self) -> None:
        with self._attempt() as wanted:
            if wanted and self.folder.exists():
                old = self.folder.with_name(f".{self.folder.name}.old")
                shutil.rmtree(old, ignore_errors=True)
                self.folder.rename(old)
                self.partial.rename(self.folder)
                shutil.rmtree(old)
            elif wanted:
                self.partial.rename(self.folder)

    def abandon(self) -> None:
        if self._writes:
            shutil.rmtree(self.partial, ignore_errors=True)

    @contextmanager
    def _attempt(self) -> Iterator[bool]:
        """Whether there is something to do here; what fails is kept."""
        try:
            yield self._writes and self.problem is None
        except Exception as error:  # noqa: BLE001 - whatever it is, the others would wait for us for ever
            self.problem = f"{self.folder} cannot be written: {error}"


@contextmanager
def publishing(folder: Path, gatherer: Gatherer, overwrite: bool) -> Iterator[Target]:
    """Collective. Raises TrainingError on all ranks if the first cannot write, and then nothing stays."""
    target = Target(folder, gatherer.first, overwrite)
    target.begin()
    gatherer.agree(target.problem)
    try:
        yield target
        target.publish()
        gatherer.agree(target.problem)
    finally:
        target.abandon()


def _sync(path: Path) -> None:
    """Down to the disk: a folder that has its name must be whole after a crash, too."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
