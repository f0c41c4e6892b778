"""The one list of executors."""

from __future__ import annotations

import pytest

from nemorun.errors import DiscoveryError
from nemorun.executors import EXECUTORS, executor_class
from nemorun.executors.base import Executor
from nemorun.executors.local import LocalExecutor


def test_every_listed_executor_loads_and_has_its_kind() -> None:
    for kind in EXECUTORS:
        assert issubclass(executor_class(kind), Executor)
        assert executor_class(kind).type == kind
    assert executor_class("local") is LocalExecutor


def test_an_unknown_one_is_refused_with_the_nearest() -> None:
    with pytest.raises(DiscoveryError, match=r"'locale'.*did you mean 'local'"):
        executor_class("locale")
