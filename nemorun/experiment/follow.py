"""Following a run: its output as it comes, its end in one line, and what Ctrl-C means meanwhile."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from nemorun.errors import NemorunError
from nemorun.experiment.record import Record, describe
from nemorun.job import JobState, JobStatus


class Terminated(BaseException):
    """SIGTERM came while a run was followed."""


class LogPrinter:
    """Prints what tasks write, from where it stopped; `[task/rank]` stands before lines of several."""

    def __init__(self, record: Record, task: str | None = None, rank: int | None = None) -> None:
        self._record = record
        self._rank = rank
        self._names = [record.check_task(task)] if task else list(record.statuses)
        self._offsets: dict[str, dict[tuple[int, int], int]] = {name: {} for name in self._names}
        self._drained: set[str] = set()
        self.streams = (
            1 if rank is not None else max(record.specs[n].resources.world_size for n in self._names)
        )
        self.several_tasks = len(self._names) > 1

    def advance(self) -> bool:
        """Print what is new. True if there was anything."""
        printed = False
        statuses = dict(self._record.statuses)
        wanted = [
            name
            for name in self._names
            if name not in self._drained and (statuses[name].attempt or not self._waits(statuses[name]))
        ]
        for executor, names in self._record.by_place(wanted):
            reading = {self._record.ref(name): self._offsets[name] for name in names}
            quiet = set(names)
            for ref, chunk in executor.logs(reading, self._rank):
                self._offsets[ref.name][chunk.attempt, chunk.rank] = chunk.offset
                self._print(ref.name, chunk.rank, chunk.text)
                quiet.discard(ref.name)
            printed = printed or len(quiet) < len(names)
            # what had ended before we read, and said nothing more, never will
            self._drained |= {name for name in quiet if statuses[name].state.ended}
        sys.stdout.flush()
        return printed

    @staticmethod
    def _waits(status: JobStatus) -> bool:
        return status.state is JobState.PENDING

    def _print(self, name: str, rank: int, text: str) -> None:
        parts = [name] * self.several_tasks + [str(rank)] * (self.streams > 1)
        prefix = f"[{'/'.join(parts)}] " if parts else ""
        lines = prefix + text.removesuffix("\n").replace("\n", f"\n{prefix}") + "\n"
        try:
            sys.stdout.write(lines)
        except UnicodeEncodeError:  # a terminal that lacks a character is no reason to fail
            encoding = sys.stdout.encoding
            sys.stdout.write(lines.encode(encoding, "backslashreplace").decode(encoding))


def print_logs(
    record: Record, task: str | None = None, rank: int | None = None, follow: bool = False
) -> None:
    """Print what has been written so far; with `follow` go on until the experiment has ended."""
    printer = LogPrinter(record, task, rank)
    record.refresh()
    while printer.advance():
        pass
    if follow:
        _until_ended(record, printer)


def follow_run(record: Record) -> bool:
    """Print a run's output until it has ended, then its state in one line.

    Returns whether a failed task's last words were the last that was printed, so that they need not be again.
    """
    started = time.time()
    announce(record)
    printer = LogPrinter(record)
    _until_ended(record, printer)
    _say(f"{record.name} ({record.id}) {record.state.value.lower()} after {time.time() - started:.1f} s")
    return not printer.several_tasks and printer.streams == 1


def announce(record: Record) -> None:
    """Say what was submitted, where to, and how to look at it."""
    kinds = ", ".join(dict.fromkeys(record.executor(name).type for name in record.statuses))
    many = f", {len(record.statuses)} tasks" if len(record.statuses) > 1 else ""
    _say(
        f"{record.name} ({record.id}) submitted to {kinds}{many}; "
        f"`nemorun status {record.id}` and `nemorun logs -f {record.id}` show it"
    )


def _until_ended(record: Record, printer: LogPrinter) -> None:
    pace = record.pace()
    told = {name for name, status in record.statuses.items() if status.state.ended}
    lost = standing = ""
    while True:
        ended = record.state.ended
        happened = False
        try:
            happened = printer.advance()
            lost = ""
        except NemorunError as error:  # a laptop that slept: what runs there goes on, and so do we
            if str(error) != lost:
                lost = str(error)
                _say(f"its output cannot be read just now; trying on: {lost}")
        if not printer.several_tasks:
            standing = _tell_waiting(next(iter(record.statuses.values())), standing)
        for name, status in record.statuses.items():
            if status.state.ended and name not in told:
                told.add(name)
                if printer.several_tasks or status.state is not JobState.SUCCEEDED:
                    _say(f"task '{name}' {describe(status)}")
        if ended and not happened:
            return
        pace.pause(happened)
        record.refresh()


def _tell_waiting(status: JobStatus, told: str) -> str:
    """Say why a task does not run, where that has changed; returns what was said last."""
    words = describe(status) if status.message and not status.state.ended else ""
    if words and words != told and status.state is not JobState.RUNNING:
        _say(words)
    return words


@contextmanager
def cancelling(launched: Callable[[], Record | None]) -> Iterator[None]:
    """While a run is launched and followed, Ctrl-C (after asking, on a terminal) and SIGTERM cancel it.

    Both then go on as ever: as KeyboardInterrupt, and as the signal that ends this process.
    """
    terminated = False
    with _handled(signal.SIGTERM, _terminate):
        try:
            yield
        except (KeyboardInterrupt, Terminated) as interrupt:
            record = launched()
            if record and not record.state.ended:
                if isinstance(interrupt, KeyboardInterrupt) and not _wants_to_cancel():
                    _say(f"{record.id} runs on; `nemorun logs -f {record.id}` follows it")
                else:
                    _say(f"cancelling {record.name} ({record.id})")
                    record.cancel()
            if isinstance(interrupt, KeyboardInterrupt):
                raise
            terminated = True
    if terminated:
        signal.raise_signal(signal.SIGTERM)


def _wants_to_cancel() -> bool:
    if not sys.stdin or not sys.stdin.isatty():
        return True
    try:
        return input("\ncancel the run? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
    except KeyboardInterrupt:  # pressed again: not a question any more
        return True


@contextmanager
def signals_held() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the block is done: a submission is made whole or not at all."""
    held: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        held.append(number)

    with _handled(signal.SIGINT, hold), _handled(signal.SIGTERM, hold):
        yield
    for number in held[:1]:
        signal.raise_signal(number)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_DFL)  # a second one is not to be waited for
    raise Terminated


@contextmanager
def _handled(number: int, handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle a signal for a while; only the main thread can, others leave it as it is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, signal.SIG_DFL if before is None else before)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
