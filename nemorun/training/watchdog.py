"""A run whose ranks wait for each other without end is ended, and the rank that they wait for is named.

Each rank notes where it is: `watchdog.at("data", step)`. A thread tells the others through the store by which
the ranks found each other. Where one rank has been in the same place for too long, every rank prints the
stacks of its threads, one of them says who hangs where, and all exit with 1, so that a retry can go on from
the last checkpoint.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from nemorun.training.distributed import Ranks

_HANG = "hang"


@dataclass(frozen=True)
class Place:
    """Where a rank is."""

    count: int
    """Places it has been in so far, this one included: all ranks go through the same ones."""
    step: int
    phase: str
    seconds: float
    """How long it has been there."""

    def __str__(self) -> str:
        return f"'{self.phase}' of step {self.step}"


def diagnosis(places: Sequence[Place | None]) -> str:
    """One sentence: which rank hangs where. `places` by rank; None where one was never heard of.

    The rank that has come least far is the one that the others wait for.
    """
    known = {rank: place for rank, place in enumerate(places) if place}
    unheard = [rank for rank, place in enumerate(places) if not place]
    seconds = f"{max((place.seconds for place in known.values()), default=0):.0f} s"
    if unheard:
        return f"{_ranks(unheard)} {_has(unheard)} not been heard of; {_where(known, len(places))}"
    least = min(place.count for place in known.values())
    behind = {rank: place for rank, place in known.items() if place.count == least}
    others = {rank: place for rank, place in known.items() if place.count > least}
    place = next(iter(behind.values()))
    if not others:
        who = "the only rank has" if len(places) == 1 else f"all {len(places)} ranks have"
        return f"{who} been in {place} for {seconds}: what they do there does not end"
    return f"{_ranks(behind)} {_has(behind)} been in {place} for {seconds}; {_where(others, len(places))}"


class Watchdog:
    """Watches this rank while it is entered as a context. All ranks must have one.

    timeout: seconds that a rank may be in one place. dumps: folder for what NCCL has recorded.
    """

    def __init__(self, ranks: Ranks, timeout: float, dumps: Path) -> None:
        self._ranks = ranks
        self._timeout = timeout
        self._dumps = dumps
        self._tick = min(5.0, timeout / 20)
        self._store = _own_connection(ranks.store)
        self._now = (1, 0, "start", time.monotonic(), 1.0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def at(self, phase: str, step: int, patience: float = 1.0) -> None:
        """This rank begins `phase` of `step`; it may take `patience` times the usual timeout."""
        # One assignment: the other thread sees all of it or nothing.
        self._now = (self._now[0] + 1, step, phase, time.monotonic(), patience)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._stop.wait(self._tick):
            # Native code that keeps the interpreter stops this thread. faulthandler's does without it.
            faulthandler.dump_traceback_later(self._timeout * 2 + 4 * self._tick, exit=True, file=_log())
            place, patience = self._place()
            told = self._exchange(place, too_long=place.seconds > self._timeout * patience)
            if told and not self._stop.is_set():
                self._end()

    def _place(self) -> tuple[Place, float]:
        count, step, phase, since, patience = self._now
        return Place(count, step, phase, time.monotonic() - since), patience

    def _exchange(self, place: Place, too_long: bool) -> bool:
        """Tell the others where this rank is; returns whether any rank finds that it takes too long."""
        try:
            self._store.set(str(self._ranks.rank), json.dumps(asdict(place)))
            if too_long:
                self._store.set(_HANG, str(self._ranks.rank))
            return self._store.check([_HANG])
        except RuntimeError:  # The store ended with its process.
            return too_long

    def _end(self) -> None:
        print(
            f"rank {self._ranks.rank}: stacks of all threads, because ranks hang:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(file=_log())
        _dump_exchanges(self._dumps, self._ranks.rank)
        time.sleep(2 * self._tick)  # All have seen it by then, and told where they are.
        places = self._places()
        waiting = [rank for rank, place in enumerate(places) if place and place.count > _least(places)]
        if self._ranks.rank == (waiting or [0])[0]:
            print(f"hang: {diagnosis(places)}. A retry goes on from the last checkpoint", flush=True)
        time.sleep(2 * self._tick)  # The store lives in one of these processes.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)

    def _places(self) -> list[Place | None]:
        found: list[Place | None] = []
        for rank in range(self._ranks.world_size):
            try:
                known = self._store.check([str(rank)])
                found.append(Place(**json.loads(self._store.get(str(rank)))) if known else None)
            except RuntimeError:
                found.append(None)
        return found


def _own_connection(store: dist.Store | None) -> dist.Store:
    """A connection that is not busy while the main thread waits for something on its own."""
    if store is None:
        return dist.HashStore()
    with contextlib.suppress(RuntimeError, NotImplementedError, AttributeError):
        store = store.clone()  # type: ignore[attr-defined]  # it is there, but torch's stubs lack it
    # Under torchrun the store outlives a restart of the ranks.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store.set_timeout(timedelta(seconds=60))
    return dist.PrefixStore(f"nemorun/watchdog/{attempt}", store)


def _dump_exchanges(folder: Path, rank: int) -> None:
    """What NCCL has under way, in the form that torch's `torchfrtrace` reads."""
    dump: Any = getattr(torch._C._distributed_c10d, "_dump_nccl_trace", None)  # builds with CUDA have it
    if dump is None or "nccl" not in dist.get_backend_config():
        return
    with contextlib.suppress(OSError, RuntimeError):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"nccl_trace_rank_{rank}").write_bytes(dump())


def _log() -> int:
    return 2  # what faulthandler writes to must have a file descriptor, which `sys.stderr` need not


def _least(places: Sequence[Place | None]) -> int:
    return min((place.count for place in places if place), default=0)


def _where(places: dict[int, Place], world: int) -> str:
    grouped: dict[str, list[int]] = defaultdict(list)
    for rank, place in places.items():
        grouped[str(place)].append(rank)
    if len(grouped) == 1:
        who = "the others wait" if len(places) > 1 or world > 2 else f"{_ranks(places)} waits"
        return f"{who} in {next(iter(grouped))}"
    return "the others wait: " + ", ".join(f"{_ranks(ranks)} in {place}" for place, ranks in grouped.items())


def _ranks(ranks: Any) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _has(ranks: Any) -> str:
    return "have" if len(ranks) > 1 else "has"
