"""The one place where an error becomes a message and an exit code."""

from __future__ import annotations

import subprocess
import sys

import pytest

import nemorun
from nemorun.cli.app import COMMANDS


def test_version(process):
    done = process("--version")
    assert (done.code, done.out, done.err) == (0, f"nemorun {nemorun.__version__}\n", "")


def test_help_lists_every_command(process):
    done = process("--help")
    assert done.code == 0
    for name, (_, line) in COMMANDS.items():
        assert f"  {name} " in done.out and line in done.out


@pytest.mark.parametrize("name", COMMANDS)
def test_the_static_help_is_the_commands_own(cli, name):
    """`nemorun --help` reads a table, so that no command is imported; the table must not drift."""
    done = cli(name, "--help")
    assert done.code == 0
    assert COMMANDS[name][1] in done.out


def test_nothing_said_is_misuse(cli):
    done = cli()
    assert done.code == 2
    assert done.out == "" and "Commands:" in done.err


@pytest.mark.parametrize(
    ("argv", "wrong", "right"),
    [
        (["rnu"], "rnu", "'run'"),
        (["--versoin"], "--versoin", "'--version'"),
        (["run", "job", "--dryrun"], "--dryrun", "'--dry-run'"),
        (["run", "job", "--retrys", "2"], "--retrys", "'--retries'"),
        (["list", "--jsno"], "--jsno", "'--json'"),
        (["executors", "chekc"], "chekc", "'check'"),
    ],
)
def test_the_unknown_is_refused_with_the_nearest(cli, argv, wrong, right):
    done = cli(*argv)
    assert done.code == 2
    assert wrong in done.err and right in done.err
    assert done.out == "" and "Traceback" not in done.err and len(done.err.strip().splitlines()) == 1


@pytest.mark.parametrize("argv", [["run", "--retries", "many", "job"], ["run", "--retries"], ["logs"]])
def test_a_bad_or_missing_value_is_misuse(cli, argv):
    done = cli(*argv)
    assert done.code == 2
    assert done.err.startswith("nemorun: ") and "--help" in done.err


def test_an_error_shows_its_traceback_with_debug_only(cli, workspace):
    plain, debug = cli("run", "no_such_recipe"), cli("run", "no_such_recipe", "--debug")
    assert plain.code == debug.code == 2
    assert "Traceback" not in plain.err and "no_such_recipe" in plain.err
    assert "Traceback" in debug.err and debug.err.endswith(plain.err)


def test_what_a_user_wrote_is_not_markup(cli, workspace):
    assert "[red]x[/red]" in cli("run", "[red]x[/red]").err


def test_a_defect_is_visible(cli, monkeypatch, tmp_path):
    from nemorun.cli import workspace

    monkeypatch.setattr(workspace, "FILES", {"[red]name": 3})
    done = cli("init", str(tmp_path))
    assert done.code == 70
    assert "TypeError: write() argument must be str" in done.err and "in init" in done.err
    assert "--debug" in done.err and "Traceback" not in done.err
    assert "Traceback" in cli("init", str(tmp_path / "again"), "--debug").err


@pytest.mark.parametrize("where", ["module", "exit", "factory", "validate"])
def test_what_the_users_code_raises_is_the_users(cli, workspace, where):
    lines = {
        "module": "1 / 0",
        "exit": "raise SystemExit('division by zero')",
        "factory": "def work(): ...\n@run.factory\ndef job():\n    return run.Partial(work, n=1 / 0)",
        "validate": "class A:\n    def validate(self):\n        1 / 0\n"
        "A = dataclasses.dataclass(A)\ndef work(a: A = A()): ...\n"
        "@run.factory\ndef job():\n    return run.Partial(work, a=A())",
    }
    (workspace / "broken.py").write_text(f"import dataclasses\nimport nemorun as run\n{lines[where]}\n")
    done = cli("run", "broken.py:job")
    assert done.code == 2, done.err
    assert "division by zero" in done.err and "broken.py" in done.err
    assert "internal error" not in done.err and "Traceback" not in done.err
    assert "Traceback" in cli("run", "broken.py:job", "--debug").err


def test_an_interrupt_is_130(cli, monkeypatch):
    from nemorun.cli import workspace

    def interrupted(folder: str = "") -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(workspace, "init", interrupted)
    assert cli("init").code == 130


def test_a_closed_pipe_is_quiet():
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    reader.wait()
    for argv in (["--help"], ["recipes"], ["list", "--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "nemorun", *argv],
            stdout=reader.stdin,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
        )
        assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("argv", "allowed"),
    [
        (["--help"], set()),
        (["--version"], set()),
        (["run", "--help"], {"pydantic"}),
    ],  # Typer's own converters
)
def test_help_imports_nothing_heavy(argv, allowed):
    heavy = {"torch", "kubernetes", "fabric", "paramiko", "pydantic", "rich", "yaml", "sqlite3", "asyncio"}
    heavy |= {"nemorun.config", "nemorun.experiment", "nemorun.executors", "nemorun.workspace"}
    program = (
        "import atexit, sys; from nemorun.cli.main import main; "
        f"heavy = {heavy - allowed!r}; "
        "atexit.register(lambda: print(sorted(heavy & set(sys.modules)), file=sys.stderr)); main()"
    )
    done = subprocess.run([sys.executable, "-c", program, *argv], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_the_factory_is_there_without_typer():
    program = "import sys, nemorun as run; assert callable(run.cli.factory); print('typer' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.stdout == "False\n", done.stderr
