"""What can be run and where: recipes, show RECIPE, executors."""

from __future__ import annotations

import json

import pytest


def test_recipes(cli, workspace):
    (workspace / "recipes").mkdir()
    (workspace / "recipes" / "mine.py").write_text(
        "import nemorun as run\n\ndef work(n: int = 0): ...\n\n@run.factory\n"
        'def my_recipe(size: int = 1):\n    """Do [mine]."""\n    return run.Partial(work, n=size)\n'
    )
    done = cli("recipes")
    assert done.code == 0, done.err
    assert "my_recipe" in done.out and "Do [mine]." in done.out and "size" in done.out
    listed = {recipe["name"]: recipe for recipe in json.loads(cli("recipes", "--json").out)}
    assert set(listed["my_recipe"]) >= {"name", "doc", "parameters", "origin"}
    assert listed["my_recipe"]["doc"] == "Do [mine]."
    assert "tiny_llama_pretrain" in listed


def test_show_a_recipe(cli, workspace):
    done = cli("show", "jobs.py:job", "inner.size=5")
    assert done.code == 0, done.err
    assert "How large [it] is." in done.out and "words to keep" in done.out
    rows = {row["path"]: row for row in json.loads(cli("show", "jobs.py:job", "inner.size=5", "--json").out)}
    assert rows["inner.size"]["value"] == 5 and rows["inner.size"]["type"] == "int"
    assert rows["inner.size"]["doc"] == "How large [it] is."
    assert rows["n"]["is_default"] is True and rows["inner.size"]["is_default"] is False


def test_show_as_yaml_reads_back(cli, workspace):
    from nemorun.config import loads

    done = cli("show", "jobs.py:job", "inner.size=5", "--yaml")
    assert done.code == 0, done.err
    assert loads(done.out, base=workspace).inner.size == 5


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["show", "jobs.py:jbo"], "'job'"),
        (["show", "jobs.py:job", "inner.sze=1"], "'size'"),
        (["show", "nothing_of_that_name"], "nothing_of_that_name"),
        (["executors", "check", "locl"], "'local'"),
    ],
)
def test_the_unknown_is_refused(cli, workspace, argv, said):
    done = cli(*argv)
    assert done.code == 2
    assert said in done.err and "internal error" not in done.err and done.out == ""


def test_executors(cli, workspace):
    (workspace / "nemorun.yaml").write_text(
        "default_executor: two\nexecutors:\n  two: {type: local, ntasks_per_node: 2}\n"
    )
    listed = {row["name"]: row for row in json.loads(cli("executors", "--json").out)}
    assert listed["two"]["fields"] == {"ntasks_per_node": 2} and listed["two"]["default"] is True
    assert listed["local"]["default"] is False and listed["local"]["origin"] is None
    assert listed["two"]["origin"].endswith("nemorun.yaml")
    text = cli("executors").out
    assert "two (default)" in text and "ntasks_per_node=2" in text


def test_a_default_executor_that_there_is_not_is_told(cli, workspace):
    (workspace / "nemorun.yaml").write_text("default_executor: two\n")
    done = cli("executors")
    assert done.code == 0 and "default_executor 'two' is none of these" in done.err


def test_executors_check(cli, workspace):
    done = cli("executors", "check", "local")
    assert done.code == 0, done.err
    assert "ok" in done.out
    checked = json.loads(cli("executors", "check", "local", "--json").out)
    assert checked["ok"] is True and set(checked["checks"][0]) == {"name", "ok", "message", "advice"}


def test_executors_check_takes_fields(cli, workspace):
    assert cli("executors", "check", "local", "executor.nodes=1").code == 0
    wrong = cli("executors", "check", "local", "executor.nodes=0")
    assert wrong.code != 0 and "nodes" in wrong.out + wrong.err
    other = cli("executors", "check", "local", "nodes=1")
    assert other.code == 2 and "'nodes=1' is no field of the executor" in other.err


def test_a_broken_settings_file_is_named(cli, workspace):
    (workspace / "nemorun.yaml").write_text("executers: {}\n")
    done = cli("executors")
    assert done.code == 2 and "'executors'" in done.err and "nemorun.yaml" in done.err
