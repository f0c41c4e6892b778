"""The lines that a person follows: plain text; and the clock behind tokens/s and the time left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


def say(text: str) -> None:
    """Print at once: the line goes into a file that somebody follows. A full disk must not end the run."""
    with contextlib.suppress(OSError):
        print(text, flush=True)


def step_line(step: int, max_steps: int, values: dict[str, float], seconds_left: float) -> str:
    """One line of `values`, which need not have what is known of some devices only."""
    width = len(str(max_steps))
    parts = [
        f"step {step:{width}}/{max_steps}",
        f"loss {values['loss']:.4f}",
        f"lr {values['lr']:.2e}",
        f"grad norm {values['grad_norm']:.2f}",
        f"{values['tokens_per_second']:,.0f} tokens/s",
    ]
    if "mfu" in values:
        parts += [f"{values['tokens_per_second_per_gpu']:,.0f} a GPU", f"MFU {values['mfu']:.1%}"]
    if "peak_memory_gib" in values:
        parts.append(f"{values['peak_memory_gib']:.1f} GiB")
    if values.get("data_wait", 0) >= 0.05:
        parts.append(f"{values['data_wait']:.0%} waiting for data")
    if values.get("checkpoint_stall", 0) >= 0.05:
        parts.append(f"{values['checkpoint_stall']:.1f} s for the checkpoint")
    return " | ".join([*parts, f"ETA {duration(seconds_left)}"])


def duration(seconds: float) -> str:
    """1:02:03"""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"


class Clock:
    """Times the training itself: validation and saving are paused."""

    def __init__(self, step: int, tokens: int) -> None:
        self._step = step
        self._tokens = tokens
        self._since = time.perf_counter()
        self._seconds_per_step = 0.0
        self._waited = 0.0
        self.data_wait = 0.0
        """The share of the last lap in which training waited for data."""

    def lap(self, step: int, tokens: int) -> float:
        """Tokens per second, over all ranks, since the last lap."""
        now = time.perf_counter()
        seconds = now - self._since
        rate = (tokens - self._tokens) / seconds
        self._seconds_per_step = seconds / (step - self._step)
        self.data_wait, self._waited = self._waited / seconds, 0.0
        self._step, self._tokens, self._since = step, tokens, now
        return rate

    def left(self, max_steps: int) -> float:
        """Seconds to `max_steps` at the pace of the last lap."""
        return (max_steps - self._step) * self._seconds_per_step

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what fetches data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start
