"""A notice where the loss jumps."""

from __future__ import annotations

import statistics
from collections import deque


class LossSpikes:
    """Compares each loss with those before it, and says once that a spike begins.

    A spike is a loss above mean + `deviations` x standard deviation of the last `window` ones. What belongs
    to it does not count as normal, until it has lasted for half a window: then it is how things are now.
    """

    def __init__(self, window: int = 50, deviations: float = 6.0, least: int = 10) -> None:
        self._window = window
        self._deviations = deviations
        self._least = least
        self._normal: deque[float] = deque(maxlen=window)
        self._high: list[float] = []

    def notice(self, step: int, loss: float) -> str | None:
        """A sentence at the first loss of a spike, else None."""
        if len(self._normal) >= self._least and loss > (limit := self._limit()):
            self._high.append(loss)
            if len(self._high) >= self._window // 2:
                self._normal = deque(self._high, maxlen=self._window)
                self._high = []
            elif len(self._high) == 1:
                return (
                    f"the loss jumped at step {step}: {loss:.4f}, after {statistics.fmean(self._normal):.4f} "
                    f"on average (noticed above {limit:.4f})"
                )
            return None
        self._high = []
        self._normal.append(loss)
        return None

    def _limit(self) -> float:
        mean = statistics.fmean(self._normal)
        # A loss that hardly moves must not make each ripple a spike.
        deviation = max(statistics.pstdev(self._normal), 0.005 * abs(mean))
        return mean + self._deviations * deviation
