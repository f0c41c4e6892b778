"""Looking at what was run, by every way to name an experiment; running it again; cancelling."""

from __future__ import annotations

import json

import pytest

TASK_KEYS = {
    "name", "state", "reason", "message", "exit_code", "attempt", "started_at", "ended_at", "run_dir",
}  # fmt: skip
EXPERIMENT_KEYS = {"id", "name", "state", "created_at", "tasks"}


@pytest.fixture
def two(cli, workspace):
    """Two experiments, `first` and `second`; returns their IDs, the older one first."""
    for name, n in (("first", 1), ("second", 2)):
        done = cli("run", "jobs.py:work", f"n={n}", "--name", name)
        assert done.code == 0, done.err
    return [experiment["id"] for experiment in reversed(json.loads(cli("list", "--json").out))]


def test_list(cli, two):
    listed = json.loads(cli("list", "--json").out)
    assert [(experiment["name"], experiment["state"]) for experiment in listed] == [
        ("second", "SUCCEEDED"), ("first", "SUCCEEDED"),
    ]  # fmt: skip
    assert all(set(experiment) >= EXPERIMENT_KEYS for experiment in listed)
    assert all(set(task) >= TASK_KEYS for experiment in listed for task in experiment["tasks"])
    lines = cli("list").out.splitlines()
    assert two[1] in lines[1] and "-1" in lines[1] and two[0] in lines[2] and "-2" in lines[2]
    assert len(cli("list", "--limit", "1").out.splitlines()) == 2


def test_nothing_listed_is_said(cli, workspace):
    done = cli("list")
    assert done.code == 0 and "no experiments" in done.err
    assert json.loads(cli("list", "--json").out) == []


def test_ways_to_name_an_experiment(cli, two):
    first, second = two
    for text, wanted in {
        "-1": second,
        "-2": first,
        first: first,
        first[:7]: first,
        "first": first,
        "second": second,
    }.items():
        done = cli("status", text, "--json")
        assert done.code == 0, done.err
        assert json.loads(done.out)["id"] == wanted, text
    assert json.loads(cli("status", "--json").out)["id"] == second


def test_an_unknown_experiment_is_misuse(cli, two):
    for command in ("status", "logs", "cancel", "suspend", "resume", "show", "rerun", "diff"):
        for text in ("-3", "-0", "nosuch", "frist"):
            done = cli(command, text, *["-1"] * (command == "diff"))
            assert done.code == 2, (command, text)
            assert text in done.err and "Traceback" not in done.err and "internal error" not in done.err
    assert "'first'" in cli("status", "frist").err


def test_status(cli, two):
    done = json.loads(cli("status", "--json").out)
    assert set(done) >= EXPERIMENT_KEYS and set(done["tasks"][0]) >= TASK_KEYS
    assert (done["tasks"][0]["state"], done["tasks"][0]["exit_code"]) == ("SUCCEEDED", 0)
    text = cli("status", "first").out
    assert "first" in text and two[0] in text and "SUCCEEDED" in text


def test_a_failure_has_its_reason(process, cli, workspace):
    assert process("run", "jobs.py:boom").code == 1
    task = json.loads(cli("status", "--json").out)["tasks"][0]
    assert (task["state"], task["reason"], task["exit_code"]) == ("FAILED", "non-zero exit code", 1)
    assert "non-zero exit code" in cli("status").out
    assert "the very reason" in cli("logs", "-1").out


def test_logs(cli, two):
    assert cli("logs", "-1").out.count("worked with n=2") == 1
    assert cli("logs", "-2", "--rank", "0").out.count("worked with n=1") == 1
    assert cli("logs", "-2", "-f").out.count("worked with n=1") == 1


def test_logs_of_what_is_not_there(cli, two):
    for option, value in (("--rank", "7"), ("--task", "nosuch")):
        done = cli("logs", "-1", option, value)
        assert done.code == 2 and value in done.err and "internal error" not in done.err


def test_logs_of_one_task_and_rank(process, cli, workspace):
    show = "import os; print('I am', os.environ['RANK'])"
    import sys

    assert process("run", "executor.ntasks_per_node=2", "--", sys.executable, "-c", show).code == 0
    both, one = cli("logs", "-1").out, cli("logs", "-1", "--rank", "1").out
    assert "I am 0" in both and "I am 1" in both
    assert "I am 1" in one and "I am 0" not in one


def test_show_an_experiment(cli, two):
    done = cli("show", "first")
    assert done.code == 0, done.err
    assert two[0] in done.out and "n: 1" in done.out and "jobs" in done.out
    command = cli("run", "--", "true")
    assert command.code == 0 and cli("show", "-1").out.endswith("true\n"), command.err
    assert cli("show", "first").out.count("\n\n") == 1  # between the facts and the one task
    assert json.loads(cli("show", two[1], "--json").out)["id"] == two[1]


def test_diff(cli, two):
    done = cli("diff", "-2", "-1")
    assert done.code == 0, done.err
    rows = json.loads(cli("diff", "-2", "-1", "--json").out)
    changed = {row["path"]: (row["left"], row["right"]) for row in rows}
    assert any(
        path.endswith("n") and str(left) == "1" and str(right) == "2"
        for path, (left, right) in changed.items()
    )
    assert "no difference" in cli("diff", "-1", "-1").err


def test_diff_shows_arguments_of_any_name(cli, workspace):
    (workspace / "named.py").write_text("def f(id=0, token=0, name='', code=0, archive=0): pass\n")
    for n in (1, 2):
        words = [f"{name}={n}" for name in ("id", "token", "name", "code", "archive")]
        assert cli("run", "named.py:f", *words).code == 0
    rows = json.loads(cli("diff", "-2", "-1", "--json").out)
    shown = [row["path"] for row in rows]
    assert shown == ["f.id", "f.token", "f.name", "f.code", "f.archive"]


def test_rerun_uses_the_recorded_code_and_config(process, cli, workspace, two):
    (workspace / "jobs.py").write_text("raise SystemExit('edited')")
    done = process("rerun", "first", "n=5")
    assert done.code == 0, done.err
    assert "worked with n=5" in done.out
    assert process("rerun", "second").out.count("worked with n=2") == 1
    assert len(json.loads(cli("list", "--json").out)) == 4


def test_a_rerun_can_be_looked_at_first(cli, two):
    done = cli("rerun", "first", "n=7", "--dry-run")
    assert done.code == 0 and json.loads(done.out), done.err
    assert len(json.loads(cli("list", "--json").out)) == 2


def test_rerun_refuses_what_does_not_apply(cli, two):
    done = cli("rerun", "first", "nn=5")
    assert done.code == 2 and "nn" in done.err
    assert len(json.loads(cli("list", "--json").out)) == 2


def test_suspending_where_an_executor_cannot(process, cli, workspace):
    (workspace / "slow.py").write_text("import time\ndef slow():\n    time.sleep(600)\n")
    assert process("run", "slow.py:slow", "--detach").code == 0
    for verb in (("suspend", "--yes"), ("resume",)):
        refused = cli(*verb, "-1")
        assert refused.code == 2
        assert f"an executor of type 'local' cannot {verb[0]} tasks, and 'slow' of" in refused.err
    unknown = cli("suspend", "-1", "--task", "slwo")
    assert unknown.code == 2 and "has no task 'slwo'" in unknown.err and "'slow'" in unknown.err
    assert cli("cancel", "-1", "--yes").code == 0
    over = cli("suspend", "-1", "--yes")
    assert over.code == 2 and "there is nothing to suspend" in over.err and "CANCELLED" in over.err


def test_cancel(process, cli, workspace):
    (workspace / "slow.py").write_text(
        "import time\ndef slow():\n    print('up', flush=True)\n    time.sleep(600)\n"
    )
    assert process("run", "slow.py:slow", "--detach").code == 0
    unasked = process("cancel", "-1")
    assert unasked.code == 2 and "--yes" in unasked.err
    assert json.loads(cli("status", "--json").out)["state"] in ("PENDING", "RUNNING")
    assert cli("cancel", "-1", "--yes").code == 0
    assert json.loads(cli("status", "--json").out)["state"] == "CANCELLED"
    again = cli("cancel", "-1", "--yes")
    assert again.code == 0 and "CANCELLED" in again.err + again.out
