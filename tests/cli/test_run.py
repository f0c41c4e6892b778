"""`nemorun run`: what is run, where, with which values; and what is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from .conftest import terminal


def results(home) -> dict[str, object]:
    """Task name -> what it returned, of every run so far."""
    return {path.parent.name: json.loads(path.read_text()) for path in home.rglob("result.json")}


def recorded(cli) -> list:
    return json.loads(cli("list", "--json").out)


def test_a_recipe_with_overrides(process, workspace, nemorun_home):
    done = process("run", "jobs.py:job", "size=3", "n=1", "n+=1", "text=it's [red]${HOME}[/red]")
    assert done.code == 0, done.err
    assert "worked with n=2" in done.out
    assert list(results(nemorun_home).values()) == [{"text": "it's [red]${HOME}[/red]", "n": 2, "size": 3}]


def test_a_recipe_as_a_call(process, workspace, nemorun_home):
    assert process("run", "jobs.py:job(size=7)").code == 0
    assert next(iter(results(nemorun_home).values()))["size"] == 7


def test_a_recipes_task_has_the_recipes_name(process, workspace, nemorun_home):
    assert process("run", "jobs.py:job").code == 0
    assert list(results(nemorun_home)) == ["job"]


def test_a_failed_task_exits_1_with_its_reason(process, workspace):
    done = process("run", "jobs.py:boom")
    assert done.code == 1
    assert "the very reason" in done.out + done.err


def test_a_dry_run_prints_the_submission_and_nothing_else(process, workspace):
    done = process("run", "jobs.py:work", "n=3", "--dry-run", "--env", "MY_WORD=a b", "-e", "local")
    assert done.code == 0, done.err
    assert "MY_WORD" in json.dumps(json.loads(done.out))
    assert not (workspace / "ran.txt").exists()
    assert json.loads(process("list", "--json").out) == []


def test_a_run_says_at_once_what_was_submitted(workspace):
    os.mkfifo("gate")
    (workspace / "waits.sh").write_text("cat gate\n")
    argv = [sys.executable, "-m", "nemorun", "run", "waits.sh", "--name", "patient"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = process.stderr.readline()  # the task has not ended: it waits for us
    (workspace / "gate").write_text("opened\n")
    out, _ = process.communicate(timeout=300)
    assert re.match(r"patient \((\w{8})\) submitted to local; `nemorun status \1`", said)
    assert out == "opened\n"


def test_detach_prints_the_id_alone(process, workspace):
    done = process("run", "jobs.py:work", "--detach")
    assert done.code == 0, done.err
    assert f"work ({done.out.strip()}) submitted to local" in done.err
    assert json.loads(process("status", done.out.strip(), "--json").out)["id"] == done.out.strip()
    assert process("logs", "-1", "-f").code == 0


def test_a_smoke_run_is_for_what_has_one(process, workspace):
    done = process("run", "mixtral_8x7b", "--smoke", "--dry-run", "-e", "local")
    assert done.code == 0, done.err
    assert json.loads(done.out)["tasks"][0]["ntasks_per_node"] == 4
    done = process("run", "jobs.py:job", "--smoke")
    assert done.code == 2
    assert "work has no smoke run" in done.err
    done = process("run", "--smoke", "--", "true")
    assert done.code == 2
    assert "--smoke is for recipes" in done.err


# Scripts and commands


def test_a_command_takes_what_follows_the_dashes(process, workspace):
    done = process(
        "run", "--", sys.executable, "-c", "import sys; print(sys.argv[1:])", "--dry-run", "a b", "--", "-1"
    )
    assert done.code == 0, done.err
    assert "['--dry-run', 'a b', '--', '-1']" in done.out


def test_a_script_takes_what_follows_the_dashes(process, workspace):
    (workspace / "script.py").write_text("import sys; print('argv', sys.argv[1:])")
    done = process("run", "script.py", "--", "--rate", "1")
    assert done.code == 0, done.err
    assert "argv ['--rate', '1']" in done.out
    assert "argv []" in process("run", "script.py").out


def test_a_command_runs_with_an_executors_field(process, workspace):
    show = "import os; print('of', os.environ.get('WORLD_SIZE'))"
    done = process("run", "executor.ntasks_per_node=2", "--", sys.executable, "-c", show)
    assert done.code == 0, done.err
    assert done.out.count("of 2") == 2


def test_a_stored_task(process, cli, workspace, nemorun_home):
    stored = cli("show", "jobs.py:job", "n=4", "--yaml")
    assert stored.code == 0, stored.err
    (workspace / "task.yaml").write_text(stored.out)
    done = process("run", "--yaml", "task.yaml", "text=changed")
    assert done.code == 0, done.err
    assert list(results(nemorun_home).values()) == [{"text": "changed", "n": 4, "size": 1}]


def test_what_show_prints_can_be_piped_into_run(process, cli, workspace, nemorun_home):
    stored = cli("show", "jobs.py:job", "n=4", "text=it's\n{é}", "inner.names=[a, '1']", "--yaml").out
    argv = [sys.executable, "-m", "nemorun", "run", "--yaml", "-", "--sweep", "flag=true,false"]
    done = subprocess.run(argv, input=stored, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert results(nemorun_home)["flag-true"] == {"text": "it's\n{é}", "n": 4, "size": 1}
    (workspace / "stored.yaml").write_text(stored)
    assert process("run", "--yaml", "stored.yaml").code == 0
    assert cli("show", "-1", "--yaml").out == stored


def test_what_a_recipe_prints_is_not_the_answer(process, workspace):
    (workspace / "loud.py").write_text(
        "print('loading')\nimport nemorun as run\ndef work(): print('working')\n"
        "@run.factory\ndef loud():\n    print('making')\n    return run.Partial(work)\n"
    )
    shown = process("show", "loud.py", "--json")
    assert json.loads(shown.out) == [] and "loading" in shown.err and "making" in shown.err
    json.loads(process("run", "loud.py", "--dry-run").out)
    assert "working\n" in process("run", "loud.py").out


def test_a_file_of_a_package_is_to_be_named_by_its_package(cli, workspace):
    (workspace / "pack").mkdir()
    (workspace / "pack" / "__init__.py").write_text("")
    (workspace / "pack" / "part.py").write_text("from . import __name__ as package\ndef f(): pass\n")
    done = cli("run", "pack/part.py:f")
    assert done.code == 2 and "name it as a part of its package, pack.part:NAME" in done.err
    assert cli("run", "pack.part:f", "--dry-run").code == 0


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["run"], "nothing to run"),
        (["run", "--"], "nothing to run"),
        (["run", "no_such_recipe"], "no_such_recipe"),
        (["run", "jobs.py:jbo"], "'job'"),
        (["run", "missing.py", "--", "x"], "missing.py"),
        (["run", "jobs.py:job", "--", "x"], "after `--`"),
        (["run", "n=1", "--", "true"], "n=1"),
        (["run", "n=1"], "nothing to run"),
        (["run", "missing.sh"], "missing.sh"),
        (["run", "jobs.py:job", "--sweep", "n=1,2", "--sweep", "n=3,4"], "--sweep n"),
        (["run", "jobs.py:job", "--plugin", "jobs.py:Polite(wrod='x')"], "'word'"),
        (["run", "--yaml", "missing.yaml"], "missing.yaml"),
        (["run", "--yaml", "nemorun.yaml"], "--yaml nemorun.yaml holds None"),
        (["run", "--yaml", "jobs.py"], "--yaml jobs.py: not valid YAML: line"),
        (["run", "jobs.py:job", "inner.siz=1"], "'size'"),
        (["run", "jobs.py:job", "n=many"], "n"),
        (["run", "jobs.py:job", "nonsense"], "nonsense"),
        (["run", "jobs.py:job", "executor.partition=gpu"], "partition"),
        (["run", "jobs.py:job", "executor.noodes=2"], "'nodes'"),
        (["run", "jobs.py:job", "executor=two"], "write -e two"),
        (["run", "jobs.py:job", "--plugin", "nosuch"], "--plugin nosuch: there is no recipe"),
        (["show", "jobs.py:job", "--yaml", "--json"], "choose one"),
        (["run", "jobs.py:job", "executor.nodes=-3"], "nodes"),
        (["run", "jobs.py:job", "-e", "locl"], "'local'"),
        (["run", "jobs.py:job", "--env", "novalue"], "--env novalue"),
        (["run", "jobs.py:job", "--env", "1A=x"], "--env 1A=x"),
        (["run", "jobs.py:job", "--secret", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE"),
        (["run", "jobs.py:job", "--retries", "-1"], "--retries"),
        (["run", "jobs.py:job", "--plugin", "jobs.py:Inner"], "setup"),
        (["run", "jobs.py:job", "--sweep", "siz=1,2"], "siz"),
        (["run", "jobs.py:job", "--sweep", "n"], "n"),
    ],
)
def test_misuse_exits_2_and_runs_nothing(cli, workspace, argv, said):
    done = cli(*argv)
    assert done.code == 2, done.err
    assert said in done.err and "Traceback" not in done.err and "internal error" not in done.err
    assert done.out == ""
    assert not (workspace / "ran.txt").exists()
    assert recorded(cli) == []


# Environment, plugins, executors


def test_environment_and_secrets_reach_the_task(process, workspace, nemorun_home):
    values = {"MY_LIST": "1,2", "MY_LINES": "a\nb", "MY_EQUALS": "a=b"}
    options = [word for pair in values.items() for word in ("--env", "=".join(pair))]
    env = {**os.environ, "MY_SECRET": "hush"}
    done = process("run", "jobs.py:environment", *options, "--secret", "MY_SECRET", env=env)
    assert done.code == 0, done.err
    assert list(results(nemorun_home).values()) == [{**values, "MY_SECRET": "hush"}]


def test_a_plugin_is_applied(process, workspace, nemorun_home):
    done = process(
        "run",
        "jobs.py:work",
        "text=yes ",
        "--plugin",
        "jobs.py:Polite",
        "--plugin",
        "jobs.py:Polite(word='!')",
    )
    assert done.code == 0, done.err
    assert next(iter(results(nemorun_home).values()))["text"] == "yes please!"


def test_a_named_executor_and_the_default_one(cli, workspace):
    (workspace / "nemorun.yaml").write_text(
        "default_executor: two\n"
        "executors:\n  two: {type: local, ntasks_per_node: 2}\n  three: {type: local}\n"
    )
    two = cli("run", "jobs.py:work", "--dry-run")
    three = cli("run", "jobs.py:work", "--dry-run", "-e", "three", "executor.ntasks_per_node=3")
    plain = cli("run", "jobs.py:work", "--dry-run", "-e", "local")
    assert (two.code, three.code, plain.code) == (0, 0, 0), two.err + three.err + plain.err
    assert len({two.out, three.out, plain.out}) == 3
    assert cli("run", "jobs.py:work", "--dry-run", "executor.ntasks_per_node=1", "-e", "two").code == 0


def test_retries_start_a_failed_task_again(process, workspace):
    (workspace / "flaky.py").write_text(
        "import pathlib, sys\nfile = pathlib.Path('count.txt')\n"
        "with file.open('a') as out: out.write('x')\nsys.exit(len(file.read_text()) < 2)\n"
    )
    done = process("run", "flaky.py", "--retries", "1", "executor.backoff=0.01")
    assert done.code == 0, done.err
    assert (workspace / "count.txt").read_text() == "xx"


# Sweeps


def test_a_sweep_is_a_grid_of_tasks_named_by_their_values(process, workspace, nemorun_home):
    done = process(
        "run", "jobs.py:job", "text=w", "--sweep", "n=1,2", "--sweep", "inner.size=3,4", "--name", "grid"
    )
    assert done.code == 0, done.err
    expected = {f"n-{n}_size-{s}": {"text": "w", "n": n, "size": s} for n in (1, 2) for s in (3, 4)}
    assert results(nemorun_home) == expected
    assert [(e["name"], len(e["tasks"])) for e in json.loads(process("list", "--json").out)] == [("grid", 4)]


def test_a_sweep_over_texts_gives_names_that_differ(cli, workspace):
    done = cli("run", "jobs.py:work", "--dry-run", "--sweep", "text='a b','a/b','a, b'")
    assert done.code == 0, done.err
    assert all(f'"{name}"' in done.out for name in ("text-a-b", "text-a-b-2", "text-a-b-3"))


def test_a_sweep_over_an_executors_field(cli, workspace):
    done = cli("run", "jobs.py:work", "--dry-run", "--sweep", "executor.ntasks_per_node=1,2")
    assert done.code == 0, done.err
    assert "ntasks_per_node-1" in done.out and "ntasks_per_node-2" in done.out


def test_a_large_sweep_asks_first(cli, process, workspace):
    many = ",".join(str(number) for number in range(21))
    refused = process("run", "jobs.py:work", "--sweep", f"n={many}")
    assert refused.code == 2 and "21 tasks" in refused.err and "--yes" in refused.err
    assert recorded(cli) == [] and not (workspace / "ran.txt").exists()
    assert cli("run", "jobs.py:work", "--sweep", f"n={many}", "--dry-run").code == 0


@pytest.mark.parametrize(
    ("answer", "code", "tasks"), [("n\n", 2, []), ("\n", 2, []), ("\x04", 130, []), ("y\n", 0, [21])]
)
def test_a_large_sweep_asks_on_a_terminal(cli, workspace, answer, code, tasks):
    sweep = "n=" + ",".join(map(str, range(21)))
    ended, shown = terminal(
        [sys.executable, "-m", "nemorun", "run", "jobs.py:work", "--sweep", sweep], answer
    )
    assert "21 tasks" in shown and "[y/N]" in shown
    assert ended == code, shown
    assert [len(experiment["tasks"]) for experiment in recorded(cli)] == tasks
