"""GPUs of this machine, shared among local runs: a lock file for each, held while a task uses it."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


def inventory(environ: Mapping[str, str]) -> list[str]:
    """Names of the GPUs that may be used, as CUDA_VISIBLE_DEVICES names them."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        for end, name in enumerate(names):
            if name in ("", "-1"):  # CUDA, too, stops at the first one that is not valid
                return names[:end]
        return names
    if shutil.which("nvidia-smi") is None:
        return []
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return re.findall(r"^GPU (\d+):", listing, re.MULTILINE)


class GpuLocks:
    """Takes GPUs for a task, all or none; closing a lock's file gives its GPU back, as a death does."""

    def __init__(self, folder: Path = Path(), names: Sequence[str] = ()) -> None:
        self._folder, self._names = folder, names
        self._held: dict[str, int] = {}

    def take(self, count: int) -> list[str] | None:
        """Names of `count` GPUs that nobody else has, or None while there are not enough."""
        taken: list[str] = []
        for name in self._names:
            if len(taken) == count:
                break
            if name not in self._held and self._lock(name):
                taken.append(name)
        if len(taken) == count:
            return taken
        self.give_back(taken)
        return None

    def give_back(self, names: list[str]) -> None:
        for name in names:
            os.close(self._held.pop(name))

    def _lock(self, name: str) -> bool:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._folder / f"{re.sub(r'[^A-Za-z0-9-]', '_', name)}.lock"
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._held[name] = fd
        return True
