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
    width = len(str(max_steps))
    return (
        f"step {step:{width}}/{max_steps} | loss {values['loss']:.4f} | lr {values['lr']:.2e} "
        f"| grad norm {values['grad_norm']:.2f} | {values['tokens_per_second']:,.0f} tokens/s "
        f"| ETA {duration(seconds_left)}"
    )


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

    def lap(self, step: int, tokens: int) -> float:
        """Tokens per second, over all ranks, since the last lap."""
        now = time.perf_counter()
        seconds = now - self._since
        rate = (tokens - self._tokens) / seconds
        self._seconds_per_step = seconds / (step - self._step)
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
