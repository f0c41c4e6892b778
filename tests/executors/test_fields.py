"""The local executor's fields and what it renders: checked and shown before anything runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest

from nemorun.errors import ConfigError
from nemorun.executors.local import LocalExecutor
from nemorun.job import Resources

from .conftest import Bench


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("nodes", -3),
        ("nodes", 0),
        ("nodes", "x"),
        ("nodes", True),
        ("ntasks_per_node", 1.5),
        ("gpus_per_node", -1),
        ("max_parallel", 0),
        ("retries", -1),
        ("grace_period", -1),
        ("grace_period", float("nan")),
        ("backoff", "soon"),
        ("time", "banana"),
        ("cwd", "/no/such/folder"),
        ("env_vars", {"A=B": "x"}),
        ("env_vars", {"A": 1}),
    ],
)
def test_a_bad_field_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        LocalExecutor(**{field: value}).validate()


def test_good_fields_pass() -> None:
    LocalExecutor(nodes=2, gpus_per_node=0, time="1-0", retries=3, grace_period=0, cwd="/").validate()


def test_resources_come_from_the_executor_or_the_task() -> None:
    assert LocalExecutor().resources(None) == Resources(1, 1, 0)
    assert LocalExecutor(nodes=2).resources(None) == Resources(2, 1, 0)
    assert LocalExecutor(nodes=2).resources(Resources(2, 4)) == Resources(2, 4, 0)
    with pytest.raises(ConfigError, match="nodes: the executor has 3, but the task asks for 2"):
        LocalExecutor(nodes=3).resources(Resources(2, 4))


def test_more_gpus_than_there_are_are_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    bench.add(python="", resources=Resources(nodes=2, gpus_per_node=2))
    with pytest.raises(ConfigError, match="asks for 4 GPUs"):
        bench.executor.check_job(bench.jobs[0])
    bench.add("fits", python="", resources=Resources(nodes=2, gpus_per_node=1))
    bench.executor.check_job(bench.jobs[1])


def test_rendering_is_pure_and_is_what_is_submitted(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(env_vars={"B": "2", "A": "1"}, time="0:30")
    bench.add(python="pass", env={"C": "3"}, secrets=("KEY",), dependencies=())
    rendered = bench.executor.render(bench.jobs)
    assert rendered == bench.executor.render(bench.jobs)
    (task,) = json.loads(rendered.text)["tasks"]
    assert list(task["env"].items()) == [("A", "1"), ("B", "2"), ("C", "3")]
    assert task["secrets"] == ["KEY"] and task["time_limit"] == 30
    assert task["argv"][0] == sys.executable
    bench.submit({"KEY": "value"})
    bench.wait()
    assert (bench.folder / "local" / "plan.json").read_text() == rendered.text
