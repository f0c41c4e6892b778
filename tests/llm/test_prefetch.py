"""Batches read ahead: the same ones, in bounds, with the state of what was handed out."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemorun.llm.data import Prefetched


class Numbers:
    """Steps that are counted; the one at `fails_at` cannot be read."""

    def __init__(self, fails_at: int = -1) -> None:
        self.at = 0
        self.fails_at = fails_at
        self.read = threading.Event()

    def next_step(self) -> list[int]:
        if self.at == self.fails_at:
            raise OSError("the disk is gone")
        self.at += 1
        self.read.set()
        return [self.at]

    def validation(self, global_batches: int) -> list[int]:
        return list(range(global_batches))

    def state(self) -> dict[str, Any]:
        return {"at": self.at}

    def restore(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(["step", "step", "save", "restore", "close", "validate"]), max_size=30),
    st.integers(0, 3),
)
def test_it_cannot_be_told_from_reading_when_asked(actions: list[str], ahead: int) -> None:
    plain, ahead_of_it = Numbers(), Prefetched(Numbers(), ahead)
    saved = plain.state()
    for action in actions:
        if action == "step":
            assert ahead_of_it.next_step() == plain.next_step()
        elif action == "save":
            saved = ahead_of_it.state()
        elif action == "restore":
            plain.restore(saved)
            ahead_of_it.restore(saved)
        elif action == "close":
            ahead_of_it.close()
        else:
            assert ahead_of_it.validation(3) == plain.validation(3)
        assert ahead_of_it.state() == plain.state()
    ahead_of_it.close()
    assert ahead_of_it.batches.state() == plain.state()


def test_it_reads_ahead_and_not_too_far() -> None:
    numbers = Numbers()
    ahead = Prefetched(numbers, 2)
    assert numbers.at == 0  # nothing before the first step: a restore may come
    ahead.next_step()
    deadline = time.monotonic() + 10
    while numbers.at < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.05)
    assert numbers.at == 3 and ahead.state() == {"at": 1}
    ahead.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "reads data ahead"]


def test_what_goes_wrong_is_raised_in_its_turn_and_again() -> None:
    ahead = Prefetched(Numbers(fails_at=2), 3)
    assert [ahead.next_step(), ahead.next_step()] == [[1], [2]]
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is gone"):
            ahead.next_step()
    assert ahead.state() == {"at": 2}
    ahead.restore({"at": 0})
    assert ahead.next_step() == [1]
    ahead.close()
