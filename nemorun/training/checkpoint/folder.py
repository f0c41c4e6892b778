"""The folders of a run's checkpoints: which are whole, what is wrong with the others, which are kept."""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

STATE = "state.json"
_COMPLETE = re.compile(r"step-(\d+)")
_PIECE = 1 << 24


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def complete(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first; what a killed save left is none."""
    found = {
        int(match[1]): path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := _COMPLETE.fullmatch(path.name))
    }
    return [found[step] for step in sorted(found)]


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, with every byte of it read. None: nothing."""
    problem, state = examine(checkpoint)
    return problem or damage_of_files(checkpoint, state["files"])


def examine(checkpoint: Path) -> tuple[str | None, dict[str, Any]]:
    """What is wrong as far as `state.json` and the sizes of the files tell, and the state."""
    try:
        text = (checkpoint / STATE).read_text()
        state = json.loads(text)
        checksum = state.pop("checksum")
        if checksum != _checksum_of(state):
            return f"{STATE} does not match its checksum", {}
        for name, (size, _) in state["files"].items():
            if (found := (checkpoint / name).stat().st_size) != size:
                return f"{name} has {found:,} bytes instead of {size:,}", {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}", {}
    return None, state


def damage_of_files(checkpoint: Path, files: dict[str, list[int]]) -> str | None:
    """What is wrong with the contents of these files: name -> size and checksum."""
    for name, (_, wanted) in files.items():
        try:
            if checksum_of_file(checkpoint / name) != wanted:
                return f"{name} does not match its checksum"
        except OSError as error:
            return f"{type(error).__name__}: {error}"
    return None


def checksum_of_file(path: Path) -> int:
    """CRC-32: it finds every flipped bit, and zlib lets other threads run meanwhile."""
    checksum = 0
    piece = memoryview(bytearray(_PIECE))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(piece):
            checksum = zlib.crc32(piece[:count], checksum)
    return checksum


def publish(partial: Path, final: Path, state: dict[str, Any], files: dict[str, list[int]]) -> None:
    """Make `partial`, in which all ranks have written and synced `files`, the checkpoint `final`."""
    for name, (size, _) in files.items():
        path = partial / name
        if not path.exists() or path.stat().st_size != size:
            raise OSError(f"{path} of another rank is not seen here: all nodes must share this folder")
    state = {**state, "files": files}
    write_synced(partial / STATE, json.dumps({**state, "checksum": _checksum_of(state)}, indent=1))
    sync_folder(partial)
    if final.exists():
        final.rename(final.with_name(final.name + ".old.tmp"))
    partial.rename(final)
    sync_folder(final.parent)


def put_aside(checkpoint: Path) -> Path:
    aside = checkpoint.with_name(checkpoint.name + ".damaged")
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)
    return aside


def tidy(folder: Path, keep_last: int, keep_every: int) -> None:
    """Delete what killed saves left, and old checkpoints: all but the last ones and the milestones."""
    for old in complete(folder)[:-keep_last]:
        if not (keep_every and step_of(old) % keep_every == 0):
            # Renamed first: half a checkpoint must not look like a whole one if this is killed.
            old.rename(old.with_name(old.name + ".tmp"))
    for partial in folder.glob("step-*.tmp"):
        shutil.rmtree(partial, ignore_errors=True)


def write_synced(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checksum_of(state: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(state, sort_keys=True).encode())
