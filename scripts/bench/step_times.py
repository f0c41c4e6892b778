"""What the times of a row's steps say."""

from __future__ import annotations

import statistics


def summary(times: list[float]) -> dict[str, float | None]:
    """The median in seconds, and p99 over it, which a single step does not have."""
    median = statistics.median(times)
    jitter = sorted(times)[int(len(times) * 0.99)] / median if len(times) > 1 else None
    return {"median_s": median, "jitter": jitter}


def said_jitter(jitter: float | None) -> str:
    """A column of 10 characters."""
    return f"{'' if jitter is None else f'{jitter:.3f}':>10}"
