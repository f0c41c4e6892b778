"""Batches read ahead by a thread, while the model computes."""

from __future__ import annotations

import queue
import threading
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")


class Steps(Protocol[T]):
    """The trainer's `Batches`, whatever a batch is."""

    def next_step(self) -> list[T]: ...

    def validation(self, global_batches: int) -> list[T]: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


class Prefetched(Generic[T]):
    """`batches`, up to `ahead` steps of them read before they are asked for.

    `state()` is that after the last step that was handed out, whatever has been read since. What goes wrong
    while reading ahead is raised by the `next_step` that would have read it.
    """

    def __init__(self, batches: Steps[T], ahead: int = 2) -> None:
        self.batches = batches
        self.ahead = ahead
        self._state = batches.state()
        self._reader: _Reader[T] | None = None

    def __str__(self) -> str:
        return str(self.batches)

    def next_step(self) -> list[T]:
        if self.ahead < 1:
            found = self.batches.next_step()
            self._state = self.batches.state()
            return found
        if self._reader is None:
            self._reader = _Reader(self.batches, self.ahead)
        micro_batches, self._state = self._reader.take()
        return micro_batches

    def validation(self, global_batches: int) -> list[T]:
        return self.batches.validation(global_batches)

    def state(self) -> dict[str, Any]:
        return self._state

    def restore(self, state: dict[str, Any]) -> None:
        self.close()
        self.batches.restore(state)
        self._state = self.batches.state()

    def close(self) -> None:
        """End the thread, go back to what was handed out; it starts again with the next step."""
        if self._reader is not None:
            self._reader.stop()
            self._reader = None
            self.batches.restore(self._state)


class _Reader(Generic[T]):
    """The thread and the queue between it and the trainer."""

    def __init__(self, batches: Steps[T], ahead: int) -> None:
        self._batches = batches
        self._room = threading.Semaphore(ahead)
        self._found: queue.SimpleQueue[tuple[list[T], dict[str, Any]] | BaseException] = queue.SimpleQueue()
        self._stopped = False
        self._thread = threading.Thread(target=self._read, name="reads data ahead", daemon=True)
        self._thread.start()

    def take(self) -> tuple[list[T], dict[str, Any]]:
        found = self._found.get()
        if isinstance(found, BaseException):
            self._found.put(found)  # whoever asks again is told again
            raise found
        self._room.release()
        return found

    def stop(self) -> None:
        self._stopped = True
        self._room.release()
        self._thread.join()

    def _read(self) -> None:
        while True:
            self._room.acquire()
            if self._stopped:
                return
            try:
                micro_batches = self._batches.next_step()
                self._found.put((micro_batches, self._batches.state()))
            except BaseException as error:  # noqa: BLE001 - raised again by `take`, in the trainer's thread
                self._found.put(error)
                return
