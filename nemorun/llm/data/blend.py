"""Which source the next sequence comes from."""

from __future__ import annotations

from collections.abc import Sequence


class Blend:
    """Sources in turn, so that after any number n of turns each has had its share of n to within 1.

    This is Tijdeman's rule for fair schedules (1980): among the sources that are not ahead, the one whose
    turn is due first. No chance is in it, so no stretch of the run has more of one source than another.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        total = sum(weights)
        self.shares = [weight / total for weight in weights]
        self.counts = [0] * len(weights)
        """Turns that each source has had."""
        self._slack = 1 / (2 * len(weights) - 2) if len(weights) > 1 else 0.0

    def next(self) -> int:
        turns = sum(self.counts) + 1
        best, best_due = 0, float("inf")
        for source, (share, count) in enumerate(zip(self.shares, self.counts, strict=True)):
            owed = share * turns - count
            due = (1 - self._slack - owed) / share
            if owed >= self._slack - 1e-9 and due < best_due:
                best, best_due = source, due
        self.counts[best] += 1
        return best
