"""Recorded experiments run again as they were, with changes, or further; and are compared."""

from pathlib import Path
from types import ModuleType

import pytest

import nemorun as run
from nemorun.config import Partial
from nemorun.errors import ConfigError, DiscoveryError, OverrideError
from nemorun.executors.local import LocalExecutor
from nemorun.experiment import diff, rerun
from nemorun.job import JobState


def launched(jobs: ModuleType, **arguments: object) -> run.Experiment:
    experiment = run.Experiment("double", executor=LocalExecutor(), config={"note": "hello"}, seed=3)
    experiment.add(Partial(jobs.double, **arguments), env={"MY_VALUE": "1"})
    experiment.run()
    return experiment


def test_the_recorded_code_and_configuration_run_again(folder: Path, jobs: ModuleType) -> None:
    old = launched(jobs, n=4)
    (folder / "jobs.py").write_text("raise RuntimeError('not what was submitted')\n")
    again = rerun(old.id)
    assert again.id != old.id
    assert again.run().value == 8
    facts = again.record.facts
    assert (facts["rerun_of"], facts["seed"], facts["config"]) == (old.id, 3, old.record.facts["config"])
    assert facts["code"] == old.record.facts["code"]
    assert again.record.specs["double"].env == old.record.specs["double"].env
    assert rerun(again.id).run().value == 8


def test_overrides_change_the_task_and_the_executor(jobs: ModuleType) -> None:
    old = launched(jobs, n=4)
    again = rerun(old.id, ["n=5", "n+=1", "executor.ntasks_per_node=2", "executor.retries=3"])
    assert again.run().value == 12
    spec = again.record.specs["double"]
    assert (spec.resources.ntasks_per_node, spec.retries) == (2, 3)
    assert again.record.facts["overrides"][0] == "n=5"
    for bad in (["m=1"], ["executor.nods=1"], ["n=x"], ["executor.nodes=-1"]):
        with pytest.raises(ConfigError):
            rerun(old.id, bad).run()
    command = run.run(run.Command(["true"]))
    with pytest.raises(OverrideError, match="'n=1' does not apply"):
        rerun(command.id, ["n=1"]).run()


def test_an_override_changes_the_tasks_that_take_it(jobs: ModuleType) -> None:
    experiment = run.Experiment("two", executor=LocalExecutor())
    experiment.add(Partial(jobs.double, n=1))
    experiment.add(Partial(jobs.note, word="a"))
    experiment.run()
    result = rerun(experiment.id, ["n=5"]).run()
    assert result.tasks["double"].value == 10
    with pytest.raises(OverrideError, match=r"'m=5' does not apply: no task of \w+ takes it"):
        rerun(experiment.id, ["n=5", "m=5"]).run()


def test_resuming_goes_on_in_the_old_results(jobs: ModuleType) -> None:
    old = run.run(jobs.count)
    assert rerun(old.id).run().value == 1
    second = rerun(old.id, resume=True)
    assert second.run().value == 2
    assert rerun(second.id, resume=True).run().value == 3


def test_what_still_runs_cannot_be_resumed(jobs: ModuleType) -> None:
    old = run.run(jobs.hang, executor=LocalExecutor(grace_period=0.5), detach=True)
    with pytest.raises(ConfigError, match="has not ended"):
        rerun(old.id, resume=True).dry_run()
    run.Experiment.from_id(old.id).cancel()


def test_a_rerun_takes_nothing_new(jobs: ModuleType) -> None:
    old = launched(jobs)
    with pytest.raises(ConfigError, match="nothing can be added"):
        rerun(old.id).add(jobs.double)
    Path(old.record.specs["double"].code or "").unlink()
    with pytest.raises(DiscoveryError, match="is gone"):
        rerun(old.id).run()


def test_differences_stand_by_their_paths(folder: Path, jobs: ModuleType) -> None:
    first = launched(jobs, n=4)
    assert diff(first.id, first.id) == []
    second = rerun(first.id, ["n=5", "executor.ntasks_per_node=2"])
    assert second.run().state is JobState.SUCCEEDED
    found = {row.path: (row.left, row.right) for row in diff(first.id, second.id)}
    assert found["double.n"] == ("4", "5")
    assert found["double.resources.ntasks_per_node"] == ("1", "2")
    assert found["double.executor.ntasks_per_node"] == (None, "2")
    assert not any("token" in path or "run_dir" in path for path in found)


def test_only_tasks_are_compared_whatever_they_are_called(jobs: ModuleType) -> None:
    for name, n in (("one", 1), ("two", 2)):
        run.run(run.Partial(jobs.double, n=n), name=name)
    found = {row.path: (row.left, row.right) for row in diff("one", "two")}
    assert found["task"] == ("one", "two")
    assert found["task.n"] == ("1", "2")
    assert not any(path.startswith(("one", "two")) or "PYTHONPATH" in path for path in found)


def test_a_task_of_one_side_is_one_row(jobs: ModuleType) -> None:
    both, one = run.Experiment("both"), run.Experiment("one")
    for experiment in (both, one):
        experiment.add(run.Partial(jobs.double, n=1), name="same")
    both.add(run.Command(["true", "a b"]), name="more")
    both.run()
    one.run()
    rows = [row for row in diff("one", "both") if row.path.startswith(("same", "more"))]
    assert rows == [("more", None, "true 'a b'")]
