"""Functions of scripts and of notebooks reach the task; a script's launch code does not run there again."""

from __future__ import annotations

import json
import linecache
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nemorun as run
from nemorun.config import dumps, freeze_source, launching_allowed, load_script, loads
from nemorun.config.scripts import ARGV_VARIABLE
from nemorun.errors import ConfigError

SCRIPT = '''
"""A script without a main guard."""
from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import nemorun as run
from nemorun.config import LaunchInTask, launching_allowed

import neighbour

BEFORE = "set before"


@dataclass
class Settings:
    n: int = 1


def launch(task):
    Path("launched.txt").open("a").write("x")
    if not launching_allowed():
        raise LaunchInTask
    return "launched"


def work(settings: Settings, later=None) -> list:
    return [settings.n, BEFORE, neighbour.VALUE, helper(), type(settings) is Settings, sys.argv[1:]]


try:
    result = launch(run.Partial(work, settings=Settings(n=5)))
except Exception:
    raise SystemExit("an except Exception must not take it")
Path("after.txt").write_text("must not be written in a task")


def helper() -> str:
    return "defined after the launch"


if result == "launched":
    from nemorun.config import dumps
    print(dumps(run.Partial(work, settings=Settings(n=5)), code_root=Path(".")))
'''


@pytest.fixture
def script(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "neighbour.py").write_text("VALUE = 'of the neighbour'\n")
    (folder / "my script.py").write_text(SCRIPT)
    return folder / "my script.py"


@pytest.fixture(autouse=True)
def clean_interpreter() -> Iterator[None]:
    path, modules, argv = list(sys.path), set(sys.modules), list(sys.argv)
    yield
    sys.path[:], sys.argv[:] = path, argv
    for name in set(sys.modules) - modules:
        if name == "neighbour" or name.startswith("nemorun_script_"):
            del sys.modules[name]


def test_a_script_is_carried_by_file_and_name(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = subprocess.run(
        [sys.executable, script.name], cwd=script.parent, check=True, capture_output=True, text=True
    )
    assert launcher.stdout.splitlines()[0] == "_target_: script:my script.py:work"
    (script.parent / "launched.txt").unlink()
    (script.parent / "after.txt").unlink()
    monkeypatch.chdir(script.parent)
    monkeypatch.setenv(ARGV_VARIABLE, json.dumps(["--flag", "a b"]))
    task = loads(launcher.stdout, code_root=script.parent)
    result = task()
    assert result == [
        5,
        "set before",
        "of the neighbour",
        "defined after the launch",
        True,
        ["--flag", "a b"],
    ]
    assert (script.parent / "launched.txt").read_text() == "x", (
        "the launch was reached once more, and stopped"
    )
    assert not (script.parent / "after.txt").exists()
    assert launching_allowed()


def test_a_relative_script_is_looked_for_in_the_base_first(tmp_path: Path) -> None:
    for folder in ("base", "root"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "one.py").write_text(f"def where(): return {folder!r}\n")
    text = "_target_: script:one.py:where\n_partial_: true\n"
    assert loads(text, base=tmp_path / "base", code_root=tmp_path / "root")() == "base"
    assert loads(text, base=tmp_path, code_root=tmp_path / "root")() == "root"


def test_a_script_is_loaded_once_and_argv_comes_back(tmp_path: Path) -> None:
    file = tmp_path / "count.py"
    file.write_text("import sys\nARGV = list(sys.argv)\nclass Thing: pass\n")
    before = list(sys.argv)
    module = load_script(file)
    assert load_script(str(file)) is module and [str(file)] == module.ARGV and sys.argv == before
    assert module.__name__ != "__main__" and module.__file__ == str(file)


def test_the_running_script_is_not_loaded_again(tmp_path: Path) -> None:
    file = tmp_path / "main.py"
    file.write_text(
        "import nemorun as run\nfrom nemorun.config import dumps, loads\n"
        "def f(): pass\nprint('runs')\nassert loads(dumps(run.Partial(f))) == run.Partial(f)\n"
    )
    result = subprocess.run([sys.executable, str(file)], check=True, capture_output=True, text=True)
    assert result.stdout == "runs\n"


def test_an_error_in_a_script_is_passed_on_and_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("x = 1\nraise ValueError('mine')\n")
    for _ in range(2):
        with pytest.raises(ValueError, match="mine"):
            load_script(file)
    assert launching_allowed()
    file.write_text("y = 2\n")
    assert load_script(file).y == 2


# Notebooks


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Executes source as a notebook does: in a `__main__` without a file, its text in the line cache."""
    main = types.ModuleType("__main__")
    main.__dict__["__spec__"] = None
    monkeypatch.setitem(sys.modules, "__main__", main)
    names = []

    def execute(source: str) -> types.ModuleType:
        source = textwrap.dedent(source)
        name = f"<ipython-input-{len(linecache.cache)}-{len(names)}>"
        names.append(name)
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        exec(compile(source, name, "exec"), vars(main))
        return main

    yield execute
    for name in names:
        del linecache.cache[name]


NOTEBOOK = """
    import math
    import os.path as osp
    from collections import OrderedDict as OD
    from dataclasses import dataclass

    import nemorun as run

    LIMITS = {"low": -1.5, "high": float("inf"), "sizes": (1,), "names": {"a"}, "none": None, "text": "it's"}

    @dataclass
    class Base:
        n: int = 2

    @dataclass
    class Settings(Base):
        name: str = "x"

    def even(n):
        return n == 0 or odd(n - 1)

    def odd(n):
        return n != 0 and even(n - 1)

    parity = even

    @run.resources(lambda settings: run.Resources(nodes=settings.n))
    def work(settings: Settings, unused=math):
        local = [LIMITS[key] for key in LIMITS]
        def inner():
            return osp.join("a", "b"), parity(settings.n), OD(a=1)
        return inner(), local, isinstance(settings, Settings), local.count(None)
"""


def test_a_function_of_a_notebook_is_carried(cell: Any, tmp_path: Path) -> None:
    main = cell(NOTEBOOK)
    task = run.Partial(main.work, settings=main.Settings(n=4))
    expected = task()
    sources: dict[str, str] = {}
    text = dumps(task, scripts=sources)
    assert [*sources] == ["interactive.py"] and "script:interactive.py:Settings" in text
    for name, source in sources.items():
        (tmp_path / name).write_text(source)
    (tmp_path / "task.yaml").write_text(text)
    read = (
        "from pathlib import Path; from nemorun.config import loads, resources_of; "
        "task = loads(Path('task.yaml').read_text(), base=Path('.')); print(task(), resources_of(task).nodes)"
    )
    result = subprocess.run(
        [sys.executable, "-c", read], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert result.stdout == f"{expected} 4\n"


def test_the_last_definition_of_a_cell_counts(cell: Any) -> None:
    cell("class Thing:\n    x = 1\n")
    main = cell("class Thing:\n    x = 2\n")
    assert "x = 2" in freeze_source(main.Thing) and "x = 1" not in freeze_source(main.Thing)


def test_a_global_that_cannot_be_carried_is_named(cell: Any) -> None:
    main = cell("log = open('/dev/null')\ndef work():\n    return log.name\n")
    with pytest.raises(ConfigError, match="work uses the global 'log', a TextIOWrapper"):
        freeze_source(main.work)
    main.log.close()
    main = cell("def lost():\n    return nowhere\n")
    with pytest.raises(ConfigError, match="lost uses 'nowhere', which is not defined"):
        freeze_source(main.lost)


def test_names_that_are_no_globals_are_left_alone(cell: Any) -> None:
    main = cell("log = open('/dev/null')\ndef work(log, x):\n    return x.log, [log for log in log]\n")
    main.log.close()
    assert "open" not in freeze_source(main.work)


def test_an_interactive_function_needs_a_place_for_its_source(cell: Any) -> None:
    main = cell("def work():\n    return 1\n")
    with pytest.raises(ConfigError, match="'work' was defined interactively"):
        dumps(run.Partial(main.work))


def test_a_source_that_cannot_be_read(tmp_path: Path) -> None:
    code = (
        "import nemorun as run\nfrom nemorun.config import dumps\ndef f(): pass\n"
        "try:\n    dumps(run.Partial(f), scripts={})\nexcept run.NemorunError as error:\n    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-"], input=code, check=True, capture_output=True, text=True)
    assert result.stdout == "the source of f is nowhere to be read: write it into a file\n"
