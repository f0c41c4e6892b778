"""Garbage is collected after the same step on every rank, and by Python itself again afterwards."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from nemorun.training.collecting import INTERVAL, collected_by_hand


@pytest.fixture
def collected() -> Iterator[list[int]]:
    """The generations that are collected."""
    found: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            found.append(info["generation"])

    gc.callbacks.append(note)
    yield found
    gc.callbacks.remove(note)


def test_garbage_is_collected_every_so_many_steps_and_at_no_other_time(collected: list[int]) -> None:
    with collected_by_hand() as collect:
        collected.clear()
        for step in range(1, 2 * INTERVAL + 1):
            kept = [[] for _ in range(2000)]  # enough to make Python collect
            collect(step)
            assert len(collected) == step // INTERVAL
        for step in range(2 * INTERVAL + 1, 20 * INTERVAL + 1):
            collect(step)
    assert kept and collected == [1] * 19 + [2]


def test_python_collects_by_itself_again_even_after_an_error() -> None:
    with pytest.raises(KeyError), collected_by_hand():
        assert not gc.isenabled() and gc.get_freeze_count() > 0
        raise KeyError
    assert gc.isenabled() and gc.get_freeze_count() == 0
    gc.disable()
    try:
        with collected_by_hand():
            pass
        assert not gc.isenabled()  # whoever had turned it off wants it so
    finally:
        gc.enable()
