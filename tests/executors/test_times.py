"""Time limits in Slurm's notations."""

from __future__ import annotations

import pytest

from nemorun.errors import ConfigError
from nemorun.executors.times import time_limit


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (30, 1800),
        ("30", 1800),
        ("0:01", 1),
        ("90:30", 5430),
        ("24:00:00", 86400),
        ("1-0", 86400),
        ("1-02", 93600),
        ("1-02:03", 93780),
        ("1-02:03:04", 93784),
        ("UNLIMITED", None),
        ("infinite", None),
        (None, None),
    ],
)
def test_notations(text: str | int | None, seconds: int | None) -> None:
    assert time_limit(text) == seconds


@pytest.mark.parametrize("text", ["banana", "", "1:2:3:4", "-5", -5, 0, "0:00", True, "1-", "1.5", "1h"])
def test_what_is_no_limit_is_refused(text: str | int) -> None:
    with pytest.raises(ConfigError, match="time: "):
        time_limit(text)
