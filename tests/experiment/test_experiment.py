"""Experiments from Python: what is refused before anything happens, what is recorded, what comes back."""

import importlib.util
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import nemorun as run
from nemorun.config import Partial, load_script
from nemorun.errors import ConfigError, DiscoveryError, StoreError, TaskFailed
from nemorun.executors.local import LocalExecutor
from nemorun.experiment import records, rerun
from nemorun.job import JobState, Reason

PYTHON = sys.executable


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def local(**fields: Any) -> LocalExecutor:
    return LocalExecutor(**{"backoff": 0.01, **fields})


# What comes back


def test_a_function_returns_its_value(jobs: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    result = run.run(Partial(jobs.double, n=4), executor=local())
    assert (result.state, result.value) == (JobState.SUCCEEDED, 8)
    captured = capfd.readouterr()
    assert captured.out == "doubling 4\n"
    assert captured.err.splitlines()[-1].startswith(f"double ({result.id}) succeeded after")


def test_a_plain_function_a_script_and_a_command(folder: Path, jobs: ModuleType) -> None:
    (folder / "script.py").write_text(
        "import sys\nfrom pathlib import Path\nPath('out').write_text(sys.argv[1])\n"
    )
    (folder / "script.sh").write_text('echo "$1" > "$2"\n')
    assert run.run(jobs.double).value == 42
    run.run(run.Script("script.py", ["two words"]))
    assert (folder / "out").read_text() == "two words"
    run.run(run.Script("script.sh", ["$HOME", "out2"]))
    assert (folder / "out2").read_text() == "$HOME\n"
    run.run(run.Command(["touch", "it's here"]))
    assert (folder / "it's here").exists()


def test_a_failure_raises_with_the_reason(jobs: ModuleType) -> None:
    with pytest.raises(TaskFailed, match=r"task 'boom' of boom \(.*the very reason") as caught:
        run.run(Partial(jobs.boom), executor=local(), follow=False)
    assert "Traceback" in str(caught.value), "nothing was printed, so the error tells it all"
    assert caught.value.exit_code == 1
    assert records()[0].state is JobState.FAILED


def test_what_has_several_ranks_is_printed_with_prefixes_and_the_first_failure_last(
    jobs: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TaskFailed, match=r"(?s)rank 1 .*Traceback.*the very reason"):
        run.run(Partial(jobs.boom_on_rank_1), executor=local(ntasks_per_node=2, grace_period=0.2))
    out = capfd.readouterr().out.splitlines()
    assert "[0] here is rank 0" in out and "[1] here is rank 1" in out


def test_several_tasks_are_told_apart(jobs: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    experiment = run.Experiment("two")
    experiment.add(Partial(jobs.double, n=1), name="one")
    experiment.add(Partial(jobs.double, n=2), name="two", executor=local(ntasks_per_node=2))
    result = experiment.run()
    assert {name: task.value for name, task in result.tasks.items()} == {"one": 2, "two": 4}
    assert result.value is None
    out = capfd.readouterr().out.splitlines()
    assert sorted(out) == ["[one/0] doubling 1", "[two/0] doubling 2", "[two/1] doubling 2"]


def test_detached_runs_go_on_and_can_be_taken_up_again(folder: Path, jobs: ModuleType) -> None:
    experiment = run.Experiment("later", executor=local())
    experiment.add(Partial(jobs.double))
    result = experiment.run(detach=True)
    assert not result.state.ended or result.value == 42
    again = run.Experiment.from_id(experiment.id[:5])
    assert again.wait().value == 42
    assert run.Experiment.from_name("later").status()["double"].state is JobState.SUCCEEDED
    with pytest.raises(DiscoveryError, match=r"no task 'doble'.*did you mean 'double'"):
        again.logs("doble")


def test_logs_can_be_read_again(jobs: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    result = run.run(Partial(jobs.double), executor=local(ntasks_per_node=2), follow=False)
    assert capfd.readouterr().out == ""
    experiment = run.Experiment.from_id(result.id)
    experiment.logs(rank=1)
    assert capfd.readouterr().out == "doubling 21\n"
    experiment.logs(follow=True)
    assert sorted(capfd.readouterr().out.splitlines()) == ["[0] doubling 21", "[1] doubling 21"]


def test_cancelling_one_task_leaves_the_others(folder: Path, jobs: ModuleType) -> None:
    experiment = run.Experiment("two", executor=local(grace_period=1))
    experiment.add(Partial(jobs.hang))
    experiment.add(Partial(jobs.double))
    experiment.run(detach=True)
    experiment.cancel("hang")
    with pytest.raises(TaskFailed, match=r"task 'hang'.*cancelled"):
        experiment.wait()
    assert {name: s.state.value for name, s in experiment.status().items()} == {
        "hang": "CANCELLED",
        "double": "SUCCEEDED",
    }
    experiment.cancel()  # once more changes nothing
    assert experiment.status()["double"].state is JobState.SUCCEEDED


# Graphs


def test_a_graph_runs_in_order_also_where_resources_differ(folder: Path, jobs: ModuleType) -> None:
    experiment = run.Experiment("graph", executor=local())
    last = experiment.add(Partial(jobs.note, word="last"), name="last", dependencies=["middle"])
    assert last.name == "last"
    first = experiment.add(Partial(jobs.note, word="first"), name="first")
    experiment.add(
        Partial(jobs.note, word="middle"),
        name="middle",
        dependencies=[first],
        executor=local(ntasks_per_node=2),
    )
    experiment.run()
    assert lines(folder / "ran.txt") == ["first", "middle", "middle", "last"]


def test_sequential_is_a_dependency(folder: Path, jobs: ModuleType) -> None:
    experiment = run.Experiment("row", executor=local())
    experiment.add(Partial(jobs.boom))
    experiment.add(Partial(jobs.note))
    experiment.add(Partial(jobs.note))
    with pytest.raises(TaskFailed, match=r"task 'boom'.*2 more did not succeed"):
        experiment.run(sequential=True)
    assert lines(folder / "ran.txt") == ["boom"]
    assert experiment.status()["note-2"].reason is Reason.DEPENDENCY_FAILED


def test_impossible_graphs_are_refused(jobs: ModuleType, folder: Path) -> None:
    experiment = run.Experiment("bad", executor=local())
    experiment.add(Partial(jobs.note), name="train", dependencies=["prepair"])
    experiment.add(Partial(jobs.note), name="prepare", dependencies=["train"])
    with pytest.raises(ConfigError, match=r"'train' depends on 'prepair'.*did you mean 'prepare'\?"):
        experiment.run()
    circle = run.Experiment("circle", executor=local())
    circle.add(Partial(jobs.note), name="a", dependencies=["b"])
    circle.add(Partial(jobs.note), name="b", dependencies=["a"])
    with pytest.raises(ConfigError, match=r"in a circle: . → . → ."):
        circle.run()
    apart = run.Experiment("apart")
    apart.add(Partial(jobs.note), name="a", executor=local(backoff=1.0))
    apart.add(Partial(jobs.note), name="b", executor=local(backoff=2.0), dependencies=["a"])
    with pytest.raises(ConfigError, match="'b' depends on 'a', but can only wait for tasks of its own place"):
        apart.run()
    assert records() == [] and lines(folder / "ran.txt") == []


def test_tasks_of_different_executors_run_side_by_side(folder: Path, jobs: ModuleType) -> None:
    experiment = run.Experiment("apart")
    experiment.add(Partial(jobs.double, n=1), name="a", executor=local(backoff=1.0))
    experiment.add(Partial(jobs.double, n=2), name="b", executor=local(time="2:00"))
    result = experiment.run()
    assert [task.value for task in result.tasks.values()] == [2, 4]
    assert [task.value for task in run.Experiment.from_id("-1").wait().tasks.values()] == [2, 4]


def test_retries_come_from_the_task_or_the_executor(folder: Path, jobs: ModuleType) -> None:
    experiment = run.Experiment("again", executor=local(retries=1))
    experiment.add(Partial(jobs.boom), name="executors")
    experiment.add(Partial(jobs.boom), name="own", retries=2)
    experiment.add(Partial(jobs.boom), name="none", retries=0)
    with pytest.raises(TaskFailed):
        experiment.run()
    assert {name: status.attempt for name, status in experiment.status().items()} == {
        "executors": 2,
        "own": 3,
        "none": 1,
    }


# Everything is checked before anything is written


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda jobs: run.run(Partial(jobs.double, n="x"), executor=local()), "n"),
        (lambda jobs: run.run(Partial(jobs.double), executor=local(nodes=-3)), "nodes"),
        (lambda jobs: run.run(Partial(jobs.double), executor=local(time="banana")), "banana"),
        (lambda jobs: run.run(Partial(jobs.double), name="a b"), "cannot be called 'a b'"),
        (lambda jobs: run.run(Partial(jobs.double), retries=-1), "retries is -1"),
        (lambda jobs: run.run(Partial(jobs.double), secrets=["MY_KEY"]), "the secret 'MY_KEY' is not set"),
        (lambda jobs: run.run(Partial(jobs.double), env={"A": 1}), "A"),  # type: ignore[dict-item] # on purpose
        (lambda jobs: run.run(Partial(jobs.double), plugins=[object()]), "no plugin"),  # type: ignore[list-item] # too
        (lambda jobs: run.run(Partial(jobs.double), executor=local(env_vars={"HF_TOKEN": "x"})), "HF_TOKEN"),
        (lambda jobs: run.run(run.Script("none.py")), "no script 'none.py'"),
        (lambda jobs: run.run(run.Command(["no-such-program"])), "no command 'no-such-program'"),
        (lambda jobs: run.run(Partial(jobs.double), executor="k8s"), "'k8s' is none"),  # type: ignore[arg-type] # too
        (lambda jobs: run.run(run.Command("ls -l")), "a list of words"),
        (lambda jobs: run.run(run.Config(dict)), "a task is a run.Partial"),
        (lambda jobs: run.run(7), "a task is a run.Partial"),  # type: ignore[arg-type] # on purpose
        (lambda jobs: run.Experiment("none").run(), "has no tasks"),
        (lambda jobs: run.Experiment("../up"), r"cannot be called '\.\./up'"),
        (lambda jobs: run.Experiment("x", seed=-1).add(jobs.double) and run.set_seed(-1), "the seed is -1"),
        (lambda jobs: run.Experiment("x").status(), "has not been run yet"),
    ],
)
def test_mistakes_are_refused(jobs: ModuleType, make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(jobs)
    assert records() == []


def test_names_are_unique_and_made_so(jobs: ModuleType) -> None:
    experiment = run.Experiment("names")
    assert [experiment.add(jobs.double).name for _ in range(3)] == ["double", "double-2", "double-3"]
    with pytest.raises(ConfigError, match="has a task 'double-2' already"):
        experiment.add(jobs.double, name="double-2")


def test_wandb_is_refused_where_it_is_not_installed(
    jobs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "wandb" else found(name, *more)
    )
    experiment = run.Experiment("x", wandb={"project": "p"})
    experiment.add(jobs.double)
    with pytest.raises(ConfigError, match=r"pip install 'nemorun\[wandb\]'"):
        experiment.run()
    assert records() == []


def test_wandb_and_tensorboard_reach_the_task(
    jobs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    experiment = run.Experiment("x", wandb={"project": "p"}, tensorboard=False, executor=local())
    experiment.add(Partial(jobs.environment, prefix="NEMORUN_"))
    value = experiment.run().value
    assert json.loads(value["NEMORUN_WANDB"]) == {"project": "p"} and value["NEMORUN_TENSORBOARD"] == "0"


def test_an_experiment_runs_once(jobs: ModuleType) -> None:
    experiment = run.Experiment("once", executor=local())
    experiment.add(jobs.double)
    experiment.run()
    for again in (experiment.run, experiment.dry_run, lambda: experiment.add(jobs.double)):
        with pytest.raises(ConfigError, match=f"nemorun rerun {experiment.id}"):
            again()


# The context manager


def test_a_block_collects_and_then_runs(folder: Path, jobs: ModuleType) -> None:
    experiment = run.Experiment("block", executor=local())
    with experiment:
        first = run.run(Partial(jobs.note, word="a"), name="a")
        run.run(Partial(jobs.note, word="b"), dependencies=["a"])
        assert first.state is JobState.PENDING and lines(folder / "ran.txt") == []
        with pytest.raises(ConfigError, match=r"give them to experiment\.run\(\)"):
            run.run(Partial(jobs.note), detach=True)
    assert lines(folder / "ran.txt") == ["a", "b"]
    run.run(Partial(jobs.note, word="outside"))
    assert [record.name for record in records()] == ["note", "block"]


def test_a_block_that_raises_runs_nothing(jobs: ModuleType) -> None:
    with pytest.raises(ZeroDivisionError), run.Experiment("block"):
        run.run(jobs.double)
        1 / 0  # noqa: B018 - raises
    assert records() == []


def test_a_block_that_ran_it_does_not_run_it_again(folder: Path, jobs: ModuleType) -> None:
    with run.Experiment("block", executor=local()) as experiment:
        run.run(Partial(jobs.note))
        experiment.run()
    assert lines(folder / "ran.txt") == ["ran"]


# The record


def test_the_record_is_complete_and_private(
    folder: Path, jobs: ModuleType, nemorun_home: Path, request: pytest.FixtureRequest
) -> None:
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"],
    ):
        subprocess.run(["git", *command], cwd=folder, check=True)
    commit = run.get_git_commit()
    before = os.umask(0)
    request.addfinalizer(lambda: os.umask(before))
    with (folder / "jobs.py").open("a") as file:
        file.write("# changed\n")
    experiment = run.Experiment(
        "full", config={"lr": 0.1, "path": Path("x")}, git_commit=commit, seed=7, executor=local()
    )
    experiment.add(Partial(jobs.double, n=3), name="a", env={"MY_VALUE": "1"})
    experiment.add(run.Command(["true"]), name="b", dependencies=["a"])
    experiment.run()
    record = experiment.record
    assert record.folder == nemorun_home / "experiments" / f"full-{experiment.id}"
    facts = yaml.safe_load((record.folder / "experiment.yaml").read_text())
    assert (facts["id"], facts["name"], facts["seed"], facts["git_commit"]) == (
        experiment.id,
        "full",
        7,
        commit,
    )
    assert facts["code"][0]["git"]["commit"] == commit and facts["code"][0]["git"]["dirty"] == ["jobs.py"]
    assert Path(facts["code"][0]["archive"]).name == facts["code"][0]["sha256"] + ".tar.gz"
    assert facts["python"].endswith(f"({sys.executable})") and facts["cwd"] == str(folder)
    assert "lr: 0.1" in facts["config"]
    assert [task["name"] for task in facts["tasks"]] == ["a", "b"]
    assert "+# changed" in (record.folder / "git.diff").read_text()
    assert (record.run_dirs["a"] / "task.yaml").read_text().count("n: 3") == 1
    assert json.loads((record.run_dirs["b"] / "job.json").read_text())["command"] == ["true"]
    for path in [record.folder, *record.folder.rglob("*")]:
        assert not stat.S_IMODE(path.lstat().st_mode) & 0o077, path
    assert not stat.S_IMODE(nemorun_home.stat().st_mode) & 0o077


def test_tasks_of_two_repositories_have_their_own_code(
    folder: Path, jobs: ModuleType, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "more.py").write_text("def more():\n    return __file__\n")
    more = load_script(other / "more.py").more
    for root in (folder, other):
        for command in (
            ["init", "-q"],
            ["add", "-A"],
            ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qmx"],
        ):
            subprocess.run(["git", *command], cwd=root, check=True)
        for file in root.glob("*.py"):
            file.write_text(file.read_text() + "# changed\n")
    experiment = run.Experiment("two", executor=local())
    experiment.add(jobs.double)
    experiment.add(more)
    value = experiment.run().tasks["more"].value
    first, second = (spec.code or "" for spec in experiment.record.specs.values())
    assert first != second and value == second.removesuffix(".tar.gz") + "/more.py"
    assert (experiment.record.folder / "git.diff").read_text().count("+# changed") == 2


def test_a_dry_run_says_what_is_submitted_and_writes_nothing(
    jobs: ModuleType, nemorun_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = run.Experiment("dry", executor=local())
    experiment.add(Partial(jobs.double))
    text = experiment.dry_run()
    assert not [path for path in nemorun_home.rglob("*") if path.is_file() and path.name != ".gitignore"]
    experiment.run()
    assert (experiment.record.folder / "local" / "plan.json").read_text() == text
    pending = run.run(Partial(jobs.double), executor=local(), dry_run=True)
    assert pending.state is JobState.PENDING and f'"{pending.id}.double"' in capsys.readouterr().out
    assert len(records()) == 1


def test_secrets_reach_the_task_and_no_file(
    jobs: ModuleType, nemorun_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_WORD", "hunter2-word")
    words = "e['MY_WORD'] + e['MY_TOKEN']"
    check = f"from os import environ as e; assert ({words})[::-1] == 'nevig-2retnuhdrow-2retnuh'"
    value = run.run(
        run.Command([PYTHON, "-c", check]),
        executor=local(),
        secrets=["MY_WORD"],
        env={"MY_TOKEN": "hunter2-given"},  # by its name, it is a secret
    )
    assert value.state is JobState.SUCCEEDED
    assert not [
        path for path in nemorun_home.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()
    ]
    (spec,) = records()[0].specs.values()
    assert spec.secrets == ("MY_TOKEN", "MY_WORD")


def test_the_command_line_is_recorded_without_secrets(folder: Path) -> None:
    (folder / "launch.py").write_text("import nemorun as run\nrun.run(run.Command(['true']))\n")
    subprocess.run(
        [PYTHON, "launch.py", "--env", "HF_TOKEN=hunter2=x", "--env=MY_API_KEY=hunter2", "n=1"], check=True
    )
    facts = records()[0].facts
    assert facts["command"][1:] == ["launch.py", "--env", "HF_TOKEN=***", "--env=MY_API_KEY=***", "n=1"]


def test_results_go_to_the_log_dir(folder: Path, jobs: ModuleType) -> None:
    with run.Experiment("logged", log_dir="results/here", executor=local()) as experiment:
        run.run(jobs.count)
    assert experiment.record.folder.parent == folder / "results" / "here"
    assert (experiment.record.run_dirs["count"] / "results" / "count").read_text() == "1"
    with run.Experiment("blocked", log_dir=folder / "jobs.py", executor=local()) as blocked:
        blocked.add(jobs.count)
        with pytest.raises(StoreError, match="cannot be written"):
            blocked.run()
        blocked._record = experiment._record  # so that the block's end does not run it again
    assert len(records()) == 1


def test_one_seed_for_all(jobs: ModuleType) -> None:
    import random

    try:
        run.set_seed(42)
        here = random.random()
        experiment = run.Experiment("seeded", executor=local())
        experiment.add(jobs.draw)
        assert experiment.run().value == here
        other = run.Experiment("seeded", seed=43, executor=local())
        other.add(jobs.draw)
        assert other.run().value != here
    finally:
        sys.modules["nemorun.experiment.seed"]._seed = None  # type: ignore[attr-defined] # as it was


def test_plugins_change_copies_in_order(jobs: ModuleType) -> None:
    class Add:
        def __init__(self, n: int) -> None:
            self.n = n

        def setup(self, task: Any, executor: Any) -> None:
            task.n = task.n * 10 + self.n
            executor.env_vars["MY_PLUGIN"] = executor.env_vars.get("MY_PLUGIN", "") + str(self.n)

    task, executor = Partial(jobs.double, n=0), local()
    experiment = run.Experiment("plugged", plugins=[Add(1)])
    experiment.add(task, executor=executor, plugins=[Add(2), Add(3)])
    assert experiment.run().value == 246
    assert experiment.record.specs["double"].env["MY_PLUGIN"] == "123"
    assert (task.n, executor.env_vars) == (0, {})


def test_a_tasks_plugin_changes_no_other_task_of_its_executor(jobs: ModuleType) -> None:
    class Mark:
        def setup(self, task: Any, executor: Any) -> None:
            executor.env_vars["MARK"] = "mine"

    executor = local()
    experiment = run.Experiment("marked", executor=executor)
    for name in ("before", "marked", "after"):
        experiment.add(Partial(jobs.double, n=1), name=name, plugins=[Mark()] if name == "marked" else [])
    experiment.run()
    executor.env_vars["LATER"] = "1"  # what was submitted is what it was then
    record = experiment.record
    assert {name: spec.env.get("MARK") for name, spec in record.specs.items()} == {
        "before": None, "marked": "mine", "after": None,
    }  # fmt: skip
    recorded = [record.executor(name).env_vars for name in ("before", "marked", "after")]
    assert recorded == [{}, {"MARK": "mine"}, {}]


def test_imports_in_the_task_come_from_the_frozen_code(folder: Path, nemorun_home: Path) -> None:
    """A script below the root, with neighbours and a `src` folder on PYTHONPATH."""
    subprocess.run(["git", "init", "-q"], check=True)
    for name, text in {
        "src/library.py": "",
        "scripts/helper.py": "import library\ndef where():\n    return [__file__, library.__file__]\n",
        "scripts/launch.py": "import nemorun as run\nimport helper\nprint(run.run(helper.where).value)\n",
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    env = {**os.environ, "PYTHONPATH": str(folder / "src")}
    done = subprocess.run([PYTHON, "scripts/launch.py"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(str(nemorun_home / "code")) == 2, done.stdout


def test_a_scripts_arguments_are_the_tasks_too(folder: Path) -> None:
    (folder / "launch.py").write_text(
        "import sys\nimport nemorun as run\nword = sys.argv[1]\ndef task():\n    return word\n"
        "print('value', run.run(task).value)\n"
    )
    done = subprocess.run([PYTHON, "launch.py", "it's"], capture_output=True, text=True)
    assert "value it's" in done.stdout, done.stderr


def test_what_the_terminal_cannot_show_does_not_stop_the_run(folder: Path) -> None:
    (folder / "odd.py").write_text(
        "import nemorun as run\nrun.run(run.Command(['printf', 'café']))\n", encoding="utf-8"
    )
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "odd.py"], capture_output=True, text=True, env=env, timeout=300)
    assert (done.returncode, done.stdout) == (0, "caf\\xe9\n"), done.stderr


def test_a_patch_is_kept_to_the_byte(folder: Path, jobs: ModuleType) -> None:
    (folder / "old.txt").write_bytes(b"1\r\n")
    for words in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"],
    ):
        subprocess.run(["git", *words], cwd=folder, check=True)
    (folder / "old.txt").write_bytes(b"caf\xe9\r\n")
    experiment = run.Experiment("patched")
    experiment.add(jobs.double)
    experiment.run()
    assert b"+caf\xe9\r\n" in (experiment.record.folder / "git.diff").read_bytes()
    again = rerun(experiment.id)
    again.run()
    assert (again.record.folder / "git.diff").read_bytes() == (
        experiment.record.folder / "git.diff"
    ).read_bytes()
