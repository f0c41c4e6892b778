"""Imports run down the table and never across the wings; heavy packages stand where they are used.

Every import statement is read, at all levels, those under TYPE_CHECKING too: a type is an arrow as well.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent

#: Room -> the rooms that it may import from, besides itself; each stands above those that it names.
STANDS_ON: dict[str, set[str]] = {
    "lazy": set(),
    "errors": set(),
    "job": set(),
    "workspace": {"errors"},
    "config": {"errors", "job"},
    "remote": {"errors"},
    "packaging": {"errors", "workspace"},
    "executors": {"errors", "job", "workspace", "config", "remote", "packaging"},
    "experiment": {"errors", "job", "workspace", "config", "packaging", "executors"},
    "worker": {"errors", "job", "config"},
    "training": {"errors", "job"},
    "llm": {"errors", "job", "training"},
    "recipes": {"errors", "config", "training", "llm"},
    "cli": {"errors", "job", "workspace", "config", "packaging", "executors", "experiment", "llm"},
    "__main__": {"cli"},
}
#: Room -> what it may import besides, by exact name: discovery looks through the folder of recipes, and a
#: recipe is written as users write theirs.
BESIDES = {"config": {"nemorun.recipes"}, "cli": {"nemorun.recipes"}, "recipes": {"nemorun"}}
#: Below all others.
FLOOR = {"lazy"}
LAUNCHER_ROOMS = set(STANDS_ON) - {"training", "llm", "recipes"}
TORCH = {"torch", "tensorboard", "numpy"}
#: Not imported at the top of a launcher's module.
HEAVY = TORCH | {"pydantic", "kubernetes", "fabric", "paramiko"}


class Arrow(NamedTuple):
    """One import: who, what by its full name, and whether the import of the module itself runs it."""

    source: str
    line: int
    target: str
    at_import: bool

    @property
    def room(self) -> str:
        return self.source.split(".")[1]


def arrows(package: Path) -> Iterator[Arrow]:
    """Every import in the package's modules, its own root (`__init__`, the door for users) aside."""
    for path in sorted(_modules(package, package.name)):
        name, file = path
        tree = ast.parse(file.read_text())
        yield from _in_body(tree, name, file.name == "__init__.py", at_import=True)


def _modules(folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _modules(path, f"{name}.{path.name}")  # through the links to executors/ and recipes/
        elif path.name == "__init__.py" and "." in name:
            yield name, path
        elif path.suffix == ".py" and path.name != "__init__.py":
            yield f"{name}.{path.stem}", path


def _in_body(node: ast.AST, module: str, is_package: bool, at_import: bool) -> Iterator[Arrow]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                # A plain `import nemorun` leads to what is then taken from it, which is read below.
                if alias.name != "nemorun" or alias.asname:
                    yield Arrow(module, child.lineno, alias.name, at_import)
        elif isinstance(child, ast.Attribute) and getattr(child.value, "id", "") == "nemorun":
            yield Arrow(module, child.lineno, f"nemorun.{child.attr}", at_import)
        elif isinstance(child, ast.ImportFrom):
            base = _absolute(child, module, is_package)
            for alias in child.names:
                yield Arrow(module, child.lineno, f"{base}.{alias.name}", at_import)
        elif isinstance(child, ast.Call) and _is_import_by_name(child):
            target = child.args[0]
            assert isinstance(target, ast.Constant)
            yield Arrow(module, child.lineno, target.value, at_import)
        runs = not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        types_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
        yield from _in_body(child, module, is_package, at_import and runs and not types_only)


def _absolute(statement: ast.ImportFrom, module: str, is_package: bool) -> str:
    if not statement.level:
        return statement.module or ""
    parts = module.split(".")
    up = statement.level - is_package
    base = parts[: len(parts) - up] if up else parts
    return ".".join([*base, *([statement.module] if statement.module else [])])


def _is_import_by_name(call: ast.Call) -> bool:
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    first = call.args[0] if call.args else None
    is_text = isinstance(first, ast.Constant) and isinstance(first.value, str)
    return name in ("import_module", "__import__") and is_text


def violations(package: Path) -> list[str]:
    """One line an import that should not be."""
    wrong = filter(_is_wrong, arrows(package))
    return [f"{arrow.source}:{arrow.line} imports {arrow.target}" for arrow in wrong]


def _is_wrong(arrow: Arrow) -> bool:
    top, _, rest = arrow.target.partition(".")
    if top == "nemorun":
        # empty for the door, `import nemorun as run`, behind which is everything
        target = rest.partition(".")[0]
        below = STANDS_ON[arrow.room] | FLOOR | {arrow.room}
        allowed = target in below or arrow.target in BESIDES.get(arrow.room, ())
        return not (allowed or target.startswith("__"))
    if arrow.room in LAUNCHER_ROOMS:
        never = TORCH if arrow.room != "worker" else set()  # the worker runs what trains; it seeds torch
        return top in never or (arrow.at_import and top in HEAVY)
    return False


def test_no_import_runs_up_or_across() -> None:
    assert not violations(ROOT / "nemorun")


def test_the_table_itself_has_no_way_up() -> None:
    rooms = list(STANDS_ON)
    assert all(rooms.index(below) < rooms.index(room) for room in rooms for below in STANDS_ON[room])


def test_every_room_has_its_place() -> None:
    rooms = {path.stem for path in (ROOT / "nemorun").iterdir() if path.is_dir() or path.suffix == ".py"}
    assert rooms - {"__init__", "__pycache__", "py"} == set(STANDS_ON)


def test_both_links_are_read() -> None:
    seen = {arrow.source for arrow in arrows(ROOT / "nemorun")}
    assert {"nemorun.executors.base", "nemorun.recipes.tiny"} <= seen


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("executors/local/plan.py", "from nemorun.experiment import Experiment"),
        ("executors/local/plan.py", "from ...experiment import store"),
        ("executors/local/__init__.py", "from ...experiment import store"),
        ("config/partial.py", "def f():\n    import nemorun.cli.main"),
        ("config/partial.py", "from nemorun import run"),
        ("config/partial.py", "import nemorun as run"),
        ("config/partial.py", "import nemorun\nnemorun.run"),
        ("config/packages.py", "import nemorun.recipes.tiny"),
        ("config/partial.py", "import importlib\nimportlib.import_module('nemorun.cli')"),
        ("training/trainer.py", "from nemorun.executors.local import LocalExecutor"),
        ("training/trainer.py", "from nemorun.llm.model import Transformer"),
        ("llm/model.py", "if True:\n    from nemorun.experiment import run"),
        ("worker.py", "if TYPE_CHECKING:\n    from nemorun.experiment import run"),
        ("job.py", "from nemorun.config import Partial"),
        ("cli/run.py", "def f():\n    import torch"),
        ("cli/run.py", "class A:\n    import torch.distributed"),
        ("config/check.py", "from pydantic import TypeAdapter"),
        ("executors/kubernetes.py", "try:\n    import kubernetes\nexcept ImportError:\n    raise"),
        ("worker.py", "import torch"),
    ],
)
def test_a_planted_violation_is_found(file: str, line: str, tmp_path: Path) -> None:
    planted = tmp_path / "nemorun" / file
    planted.parent.mkdir(parents=True)
    planted.write_text(f"{line}\n")
    assert len(violations(tmp_path / "nemorun")) == 1


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("experiment/run.py", "from nemorun.executors.base import Executor"),
        ("experiment/run.py", "from . import store"),
        ("experiment/run.py", "import nemorun\nnemorun.__version__"),
        ("config/packages.py", "import importlib\nimportlib.import_module('nemorun.recipes')"),
        ("config/check.py", "def f():\n    from pydantic import TypeAdapter"),
        ("config/check.py", "if TYPE_CHECKING:\n    from pydantic import TypeAdapter"),
        ("training/trainer.py", "import torch"),
        ("recipes/tiny.py", "import nemorun as run"),
        ("worker.py", "def seed():\n    import torch"),
    ],
)
def test_an_arrow_down_is_allowed(file: str, line: str, tmp_path: Path) -> None:
    planted = tmp_path / "nemorun" / file
    planted.parent.mkdir(parents=True)
    planted.write_text(f"{line}\n")
    assert violations(tmp_path / "nemorun") == []
