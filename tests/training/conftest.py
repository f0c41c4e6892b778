"""What the tests of training share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.training.forks import Forks


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    started = Forks()
    yield started
    started.close()
