"""Lines of a pod's log: which are new, which attempt and rank each is of. Pure.

Kubernetes takes no offset, only a second to begin from. So a cursor says up to which second was read, and how
many lines since that second began: those come again, and are passed over.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from itertools import chain, islice

#: Seconds since the epoch, and nanoseconds.
Instant = tuple[int, int]

_STAMP = re.compile(
    rb"(?P<second>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(?P<fraction>\d+))?(?P<zone>Z|[+-]\d\d:\d\d)(?: |$)"
)
#: Bytes of a line that containerd stores in one piece.
_PIECE = 1 << 14
_RANK = re.compile(rb"\[rank (\d+)\] ")
_ATTEMPT = re.compile(rb"nemorun: attempt (\d+)")
#: What our part of a pod says when all is well: not worth a line among the task's own.
_ROUTINE = re.compile(rb"nemorun: (attempt \d+|pod \d+ of \d+ waits for the others)")


@dataclass
class Cursor:
    """How far one container's log was read."""

    second: int = 0
    """Of the last line, since the epoch."""
    nanos: int = 0
    count: int = 0
    """Lines since that second began."""
    attempt: int = 0
    """That the lines belong to; 0 before the first."""
    done: bool = False
    """It was read to its end."""

    def move(self, at: Instant) -> None:
        """Behind one more line. A line that is older (a clock was set back) will not come again."""
        if at[0] >= self.second:
            self.count = 1 if at[0] > self.second else self.count + 1
            self.second, self.nanos = at


@dataclass
class Sorted:
    """Lines, by the attempt and the rank that they belong to."""

    first_rank: int
    ranks: int
    cursor: Cursor
    before: int
    """The last attempt of the pods before this one."""
    files: dict[tuple[int, int], list[bytes]] = field(default_factory=lambda: defaultdict(list))

    def add(self, line: bytes) -> None:
        if mark := _ATTEMPT.fullmatch(line):
            self.cursor.attempt = max(int(mark[1]), self.before + 1, self.cursor.attempt + 1)
        if _ROUTINE.fullmatch(line):
            return
        rank = self.first_rank
        if (prefix := _RANK.match(line)) and rank <= int(prefix[1]) < rank + self.ranks:
            rank, line = int(prefix[1]), line[prefix.end() :]
        self.files[self.cursor.attempt or self.before + 1, rank].append(line + b"\n")


def new_lines(lines: Iterable[bytes], cursor: Cursor) -> Iterator[bytes]:
    """The lines behind the cursor, which moves along."""
    coming = stamped(lines)
    again = list(islice(coming, cursor.count))
    known = cursor.second, cursor.nanos
    rotated = bool(cursor.count) and (len(again) < cursor.count or again[-1][0] != known)
    if rotated:
        # The node begins a new file at 10 MiB, and of the old one we get no more.
        if not any(at > known for at, _ in again):
            return
        cursor.count = 0
        yield b"nemorun: lines may be missing here: the node has begun a new file of this log"
        coming = chain(again, coming)
    for at, line in coming:
        cursor.move(at)
        if not rotated or at > known:
            yield line


def stamped(lines: Iterable[bytes]) -> Iterator[tuple[Instant, bytes]]:
    for line in lines:
        if found := _STAMP.match(line):  # what the kubelet itself has to say has none
            nanos = int((found["fraction"] or b"0").ljust(9, b"0"))
            yield (_epoch(found["second"] + found["zone"]), nanos), _joined(line[found.end() :])


def _joined(line: bytes) -> bytes:
    """The container runtime stores long lines in pieces; kubelets before 1.26 stamp each of them."""
    at = _PIECE
    while len(line) > at:
        if found := _STAMP.match(line, at):
            line = line[:at] + line[found.end() :]
        at += _PIECE
    return line


@lru_cache(16)
def _epoch(text: bytes) -> int:
    return int(datetime.fromisoformat(text.decode().replace("Z", "+00:00")).timestamp())
