"""Completion, asked as the shells ask: through the environment."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def offered(process, workspace):
    """The words that bash would be offered for this line; the last word is the incomplete one."""

    def ask(*words: str) -> list[str]:
        env = {
            **os.environ,
            "_NEMORUN_COMPLETE": "complete_bash",
            "COMP_WORDS": "\n".join(("nemorun", *words)),
            "COMP_CWORD": str(len(words)),
        }
        done = process(env=env)
        assert done.code == 0 and done.err == "", done.err
        return done.out.split()

    return ask


def test_commands_and_options(offered):
    assert offered("re") == ["recipes", "resume", "rerun"]
    assert "--dry-run" in offered("run", "--d")
    assert offered("executors", "ch") == ["check"]


def test_recipes(offered, workspace):
    assert "tiny_llama_pretrain" in offered("run", "tiny")
    assert "tiny_llama_pretrain" in offered("show", "tiny")


def test_fields_of_the_recipe_and_of_the_executor(offered):
    assert offered("run", "jobs.py:job", "inner.s") == ["inner.size="]
    assert "size=" in offered("run", "jobs.py:job", "si"), "the factory's own parameters, too"
    assert offered("show", "jobs.py:job", "fl") == ["flag="]
    assert "executor.ntasks_per_node=" in offered("run", "jobs.py:job", "n=1", "executor.nt")


def test_executors(offered, workspace):
    (workspace / "nemorun.yaml").write_text("executors:\n  cluster: {type: local}\n")
    assert offered("run", "-e", "clu") == ["cluster"]
    assert offered("executors", "check", "lo") == ["local"]


def test_experiments(offered, process):
    assert process("run", "--name", "mine", "--", "true").code == 0
    (word,) = offered("logs", "")
    assert process("status", word).code == 0


def test_mistakes_on_the_line_offer_nothing(offered, workspace):
    assert offered("run", "no_such_recipe", "inner.s") == []
    (workspace / "broken.py").write_text("print('loading')\n1 / 0\n")
    assert offered("run", "broken.py", "inner.s") == []
    (workspace / "nemorun.yaml").write_text("nonsense: 1\n")
    assert offered("run", "-e", "lo") == []


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_help_with_it(process, workspace, shell):
    line = "nemorun run jobs.py:job inner.s"
    env = {
        **os.environ, "_NEMORUN_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }  # fmt: skip
    done = process(env=env)
    assert done.code == 0 and "inner.size=" in done.out and "How large" in done.out


def test_the_script_is_shown(process):
    env = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = process("--show-completion", "bash", env=env)
    assert done.code == 0 and "_NEMORUN_COMPLETE=complete_bash" in done.out
