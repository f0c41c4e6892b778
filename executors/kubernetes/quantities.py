"""Kubernetes' way to write amounts: `500m`, `64Gi`, `8`, `1e3`."""

from __future__ import annotations

import re

_FACTORS = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0}
_FACTORS |= {letter: 1000.0**power for power, letter in enumerate(("k", "M", "G", "T", "P", "E"), 1)}
_FACTORS |= {f"{letter}i": 1024.0**power for power, letter in enumerate("KMGTPE", 1)}
_AMOUNT = re.compile(r"(?P<number>[+-]?[\d.]+(?:[eE][+-]?\d+)?)(?P<unit>[a-zA-Z]*)")


def amount(text: str | int | float) -> float:
    """The number that an amount stands for; the API server has checked how it is written."""
    match = _AMOUNT.fullmatch(str(text))
    return float(match["number"]) * _FACTORS[match["unit"]] if match else 0.0
