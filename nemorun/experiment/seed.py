"""One seed for this process and for every task it launches."""

from __future__ import annotations

import random
import sys

from nemorun.errors import ConfigError

_seed: int | None = None


def set_seed(seed: int) -> None:
    """Seed `random`, NumPy and torch (where they are imported) here, and the tasks of later experiments.

    `seed` is from 0 to 2^32 - 1, the range that all of them take.
    """
    global _seed
    check_seed(seed)
    _seed = seed
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)


def check_seed(seed: int) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ConfigError(f"the seed is {seed!r}; it must be a whole number from 0 to {2**32 - 1}")


def current_seed() -> int | None:
    """What `set_seed` was last called with in this process."""
    return _seed
