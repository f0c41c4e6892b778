"""A random order that is computed place by place, so that any is found at once."""

from __future__ import annotations

_MASK = (1 << 64) - 1
_ROUNDS = 6


class Shuffle:
    """A permutation of range(size), set by `keys` (such as a seed and an epoch): a Feistel network.

    Numbers are split into two halves of bits that are mixed into each other, which can be undone and so maps
    no two numbers to one. Where it leads out of the range it is applied again, until it leads back in.
    """

    def __init__(self, size: int, *keys: int) -> None:
        self.size = size
        self._bits = max((size - 1).bit_length() + 1, 2) // 2  # of one half
        key = 0
        for one in keys:
            key = _mix(key ^ (one & _MASK))
        self._keys = [_mix(key + step) for step in range(_ROUNDS)]

    def __getitem__(self, place: int) -> int:
        if not 0 <= place < self.size:
            raise IndexError(place)
        half = (1 << self._bits) - 1
        while True:
            left, right = place >> self._bits, place & half
            for key in self._keys:
                left, right = right, left ^ (_mix(right ^ key) & half)
            place = left << self._bits | right
            if place < self.size:
                return place


def _mix(value: int) -> int:
    """The output function of SplitMix64: each bit of the input changes half of the bits."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
