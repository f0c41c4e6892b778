"""The files of a source, the pieces of them that one process reads, and the records in a piece."""

from __future__ import annotations

import gzip
import json
import sys
import sysconfig
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nemorun.training.errors import TrainingError

_NO_SOURCES = frozenset({"site-packages", "dist-packages", "test", "tests", "__pycache__"})
_LINES = (".jsonl", ".jsonl.gz")
_NOT_TEXT = (
    ".parquet",
    ".arrow",
    ".gz",
    ".bz2",
    ".xz",
    ".zst",
    ".zip",
    ".tar",
    ".tgz",
    ".npy",
    ".npz",
    ".bin",
)


class BadLine(NamedTuple):
    """A record that cannot be used."""

    file: str
    line: int
    """From 1; 0 for a file that is one document."""
    reason: str

    def __str__(self) -> str:
        return f"{self.file}{f':{self.line}' if self.line else ''}: {self.reason}"


class Piece(NamedTuple):
    """The lines of a file that start in these bytes; all of a file that is one document, or compressed."""

    file: str
    start: int
    end: int


class Record(NamedTuple):
    """A line of JSON, or a file that is one document."""

    raw: bytes
    is_json: bool
    place: int
    """Where a line starts in its file."""


def files_of(path: str | Path | None, name: str, *, lines_only: bool = False) -> list[Path]:
    """The files of a source, sorted; `name` is what the user calls it. Raises TrainingError without any.

    None: the sources of this Python's standard library. In a folder each file counts, hidden ones aside;
    with `lines_only`, each with lines of JSON.
    """
    if path is None:
        folder = Path(sysconfig.get_path("stdlib"))
        found = [f for f in folder.rglob("*.py") if not _NO_SOURCES & {*f.relative_to(folder).parts}]
        if not found:
            raise TrainingError(f"this Python has no library sources in {folder}: set {name} to a text")
        return sorted(found)
    root = Path(path).expanduser().absolute()
    if root.is_file():
        return [_text(root)]
    if not root.is_dir():
        raise TrainingError(f"{name}={path} does not exist on this machine ({root})")
    found = [f for f in root.rglob("*") if not _hidden(f.relative_to(root)) and f.is_file()]
    if lines_only:
        found = [f for f in found if f.name.endswith(_LINES)]
    if not found:
        raise TrainingError(f"{name}={path} is a folder without any {'.jsonl ' if lines_only else ''}file")
    return [_text(file) for file in sorted(found)]


def describe(path: str | Path | None) -> str:
    return f"the library of Python {sys.version.split()[0]}" if path is None else str(path)


def identity(files: Sequence[Path]) -> list[list[Any]]:
    """What tells whether files have changed: path, size and time of each."""
    stats = [(file, file.stat()) for file in files]
    return [[str(file), stat.st_size, stat.st_mtime_ns] for file, stat in stats]


def pieces(files: Sequence[Path], size: int) -> list[list[Piece]]:
    """The files in order, cut or put together so that each part has about `size` bytes."""
    parts: list[list[Piece]] = [[]]
    room = size
    for file in files:
        length = file.stat().st_size
        start = 0
        while start < length or start == 0:
            if room <= 0:
                parts.append([])
                room = size
            end = min(start + room, length) if file.name.endswith(".jsonl") else length
            parts[-1].append(Piece(str(file), start, end))
            room -= max(end - start, 1)
            start = max(end, 1)
    return parts


def records(piece: Piece) -> Iterator[Record | BadLine]:
    """The records of a piece, blank lines left out; one BadLine where the file cannot be read to its end."""
    file = Path(piece.file)
    if file.name.endswith(".jsonl.gz"):
        yield from _compressed(file)
    elif file.name.endswith(".jsonl"):
        yield from _lines(file, piece.start, piece.end)
    else:
        yield Record(file.read_bytes(), is_json=False, place=0)


def line_number(record: Record, file: str) -> int:
    """The line's number. It is counted when a bad line is to be named, and not before."""
    if not record.is_json:
        return 0
    number, left = 1, record.place
    with gzip.open(file, "rb") if file.endswith(".gz") else Path(file).open("rb") as opened:
        while left > 0 and (block := opened.read(min(left, 1 << 20))):
            number += block.count(b"\n")
            left -= len(block)
    return number


def read_json(raw: bytes) -> dict[str, Any]:
    """The object on a line. Raises ValueError that says what is wrong with it."""
    try:
        found = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"no UTF-8 at byte {error.start + 1}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error.msg} at column {error.pos + 1}") from None
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"a JSON object is needed, not {type(found).__name__}")
    return found


def _text(file: Path) -> Path:
    """Raises TrainingError for a file that is known not to be text."""
    if file.suffix.lower() in _NOT_TEXT and not file.name.endswith(_LINES):
        raise TrainingError(
            f"{file} is no text: .txt, .jsonl and .jsonl.gz files are read, and others as one text each. "
            "Convert it, or keep it elsewhere"
        )
    return file


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _lines(file: Path, start: int, end: int) -> Iterator[Record]:
    with file.open("rb") as opened:
        if start:  # what began before is the piece's before
            opened.seek(start - 1)
            opened.readline()
        place = opened.tell()
        while place < end and (line := opened.readline()):
            if line.strip():
                yield Record(line, is_json=True, place=place)
            place += len(line)


def _compressed(file: Path) -> Iterator[Record | BadLine]:
    place = number = 0
    try:
        with gzip.open(file, "rb") as opened:
            for line in opened:
                number += 1
                if line.strip():
                    yield Record(line, is_json=True, place=place)
                place += len(line)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        yield BadLine(str(file), number + 1, f"the rest of the file cannot be unpacked: {error}")
