"""What the times of a row's steps say."""

from __future__ import annotations

import statistics


def summary(times: list[float]) -> dict[str, float]:
    """The median in seconds, and p99 over it."""
    median = statistics.median(times)
    return {"median_s": median, "jitter": sorted(times)[int(len(times) * 0.99)] / median}
