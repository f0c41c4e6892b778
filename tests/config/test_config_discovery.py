"""Recipes are found by name, file, dotted path and entry point; of one name two are an error."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from config_samples import Lora, Model, big_model, tiny, train

import nemorun as run
import nemorun.recipes
from nemorun.config import available, call_factory, dumps, find, loads, packages, resolve
from nemorun.errors import ConfigError, DiscoveryError, OverrideError

RECIPE = '''
import nemorun as run
from config_samples import Model, Trainer, big_model, train
from . import shared

@run.factory
def {name}(width: int = 8, data: str = "none"):
    """Recipe {name}.

    Longer.
    """
    return run.Partial(train, model=Model(hidden_size=width), trainer=Trainer(), data=data)
'''


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    root = tmp_path / "workspace"
    (root / "recipes" / "family").mkdir(parents=True)
    (root / "recipes" / "shared.py").write_text("")
    (root / "recipes" / "mine.py").write_text(RECIPE.format(name="mine"))
    (root / "recipes" / "family" / "__init__.py").write_text("")
    (root / "recipes" / "family" / "deep.py").write_text(
        RECIPE.format(name="deep").replace("from . import", "from .. import")
    )
    path, modules = list(sys.path), set(sys.modules)
    monkeypatch.chdir(tmp_path)
    yield root
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith(("recipes", "nemorun_script_", "loose")):
            del sys.modules[name]


def names(root: Path | None) -> list[str]:
    return [recipe.name for recipe in available(root)]


def test_bundled_recipes_are_found() -> None:
    bundled = available()
    assert bundled, "there is at least one bundled recipe"
    folder = Path(nemorun.recipes.__path__[0]).resolve()
    for recipe in bundled:
        assert recipe.origin is not None and recipe.origin.is_relative_to(folder) and recipe.doc
        assert find(recipe.name).kind == "factory"


def test_recipes_of_the_workspace_are_found(workspace: Path) -> None:
    assert {"mine", "deep"} <= set(names(workspace)) and "big_model" not in names(workspace)
    (mine,) = [one for one in available(workspace) if one.name == "mine"]
    assert (mine.doc, mine.parameters) == ("Recipe mine.", ("width: int = 8", "data: str = 'none'"))
    assert mine.origin == workspace / "recipes" / "mine.py"
    task = resolve("mine", workspace_root=workspace)
    assert find("mine", workspace).factory.__module__ == "recipes.mine"
    assert task.model == Model(hidden_size=8)


def test_a_recipe_is_the_same_by_every_way(workspace: Path) -> None:
    found = find("mine", workspace)
    assert find("workspace/recipes/mine.py:mine", workspace) == found
    assert find("recipes/mine.py", workspace) == found
    assert find("recipes.mine:mine", workspace) == find("recipes.mine.mine", workspace) == found
    assert names(workspace).count("mine") == 1


def test_two_of_one_name_are_an_error_that_names_both(workspace: Path) -> None:
    (workspace / "recipes" / "other.py").write_text(RECIPE.format(name="mine"))
    with pytest.raises(DiscoveryError) as caught:
        find("mine", workspace)
    assert "recipes/mine.py:" in str(caught.value) and "recipes/other.py:" in str(caught.value)
    assert find("recipes/other.py:mine", workspace).origin == workspace / "recipes" / "other.py"


def test_the_bundled_folder_as_a_workspace_counts_once() -> None:
    root = Path(nemorun.recipes.__path__[0]).resolve().parent
    assert packages.workspace_package(root) is None, "its modules are not imported under a second name"
    assert names(root) == names(None)


def test_another_folder_called_recipes_does_not_get_in_the_way(workspace: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "recipes"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("")
    sys.path.insert(0, str(other.parent))
    assert resolve("mine", workspace_root=workspace).model.hidden_size == 8


def test_a_target_in_the_recipes_folder_is_found_again(workspace: Path) -> None:
    (workspace / "recipes" / "own.py").write_text("def job(n: int = 1):\n    return n * 2\n")
    text = dumps(resolve("recipes/own.py:job", ["n=4"], workspace), code_root=workspace)
    assert "_target_: recipes.own.job" in text
    read = (
        "import sys; from pathlib import Path; from nemorun.config import loads; "
        "print(loads(sys.argv[1], code_root=Path(sys.argv[2]))())"
    )
    result = subprocess.run(
        [sys.executable, "-c", read, text, str(workspace)], check=True, capture_output=True, text=True
    )
    assert result.stdout == "8\n"


def test_unknown_names_get_the_nearest(workspace: Path) -> None:
    for name, message in [
        ("mnie", "there is no recipe 'mnie'; did you mean 'mine'"),
        ("recipes/mine.py:mein", "has no 'mein'; did you mean 'mine'"),
        ("recipes/gone.py:x", "there is no file 'recipes/gone.py'"),
        ("config_samples.tinny", "did you mean 'tiny'"),
        ("no_such.module", "there is no module 'no_such'"),
        ("config_samples.__doc__", "a factory, a function or a class is needed"),
        ("what ever", "'what ever' is no name; write RECIPE"),
        ("recipes/mine.py:x:y", "is no name; write"),
        ("recipes/mine.py:nosuch", "Its factories: mine"),
    ]:
        with pytest.raises(DiscoveryError, match=message):
            find(name, workspace)


def test_a_file_with_several_factories_needs_a_name(workspace: Path, tmp_path: Path) -> None:
    source = RECIPE.replace("from . import shared", "")
    (tmp_path / "two.py").write_text(source.format(name="a") + source.format(name="b"))
    with pytest.raises(DiscoveryError, match=r"holds 2 factories \(a, b\)"):
        find("two.py")
    assert find("two.py:b").factory.__name__ == "b"
    (tmp_path / "loose.py").write_text("def train(n: int): return n\n")
    with pytest.raises(DiscoveryError, match="holds 0 factories"):
        find("loose.py")


def test_a_plain_function_is_a_task(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "loose.py").write_text("def train(n: int, scale: float = 1.0): return n * scale\n")
    task = resolve("loose.py:train", ["n=3", "scale=2"])
    assert isinstance(task, run.Partial) and task() == 6.0
    assert loads(dumps(task)) == task
    assert resolve("loose.py:train(4)", [])() == 4.0


def test_a_broken_recipe_names_its_file(workspace: Path) -> None:
    (workspace / "recipes" / "broken.py").write_text("import no_such_thing\n")
    with pytest.raises(
        DiscoveryError, match=r"recipes cannot be loaded: .*no_such_thing.*in recipes\.broken"
    ):
        find("mine", workspace)


def test_entry_points_are_found(workspace: Path, tmp_path: Path) -> None:
    """An installed package, as pip leaves it."""
    site = tmp_path / "site"
    (site / "acme-1.0.dist-info").mkdir(parents=True)
    (site / "acme-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (site / "acme-1.0.dist-info" / "entry_points.txt").write_text(
        "[nemorun.recipes]\nacme = loose_acme\nfirst = loose_acme:first\nacme_other = loose_acme:second\n"
    )
    source = RECIPE.replace("from . import shared", "")
    (site / "loose_acme.py").write_text(source.format(name="first") + source.format(name="second"))
    sys.path.insert(0, str(site))
    assert {"first", "second", "acme_other"} <= set(names(None))
    assert find("first").origin == site / "loose_acme.py", "reached in two ways, it counts once"


# Calls


def test_a_recipe_may_be_a_call() -> None:
    assert resolve("config_samples.tiny(hidden_size=32, name='a, b')").trainer.name == "a, b"
    assert resolve("config_samples.tiny(32)").model == Model(hidden_size=32)
    with pytest.raises(OverrideError, match="did you mean 'hidden_size'"):
        resolve("config_samples.tiny(hidden=32)")


def test_arguments_of_the_factory_and_of_the_task() -> None:
    recipe = resolve(
        "config_samples.tiny", ["trainer.max_steps=5", "hidden_size=32", "steps=4", "model.num_heads=2"]
    )
    assert recipe.model == Model(hidden_size=32, num_heads=2)
    assert (recipe.trainer.max_steps, recipe.steps) == (5, 4)
    with pytest.raises(OverrideError, match="did you mean 'hidden_size'"):
        resolve("config_samples.tiny", ["hiden_size=3"])
    with pytest.raises(OverrideError, match="'hidden_size=x': 'x' is not int"):
        resolve("config_samples.tiny", ["hidden_size=x"])


def test_an_argument_of_both_goes_to_the_task(workspace: Path) -> None:
    assert resolve("mine", ["data=[1]"], workspace).data == [1], (
        "data is untyped in the task and text in the factory"
    )


def test_a_required_argument_of_the_factory(tmp_path: Path) -> None:
    file = tmp_path / "needy.py"
    file.write_text(
        "import nemorun as run\nfrom config_samples import train\n"
        "@run.factory\ndef needy(steps: int, extra: int = 1):\n"
        "    return run.Partial(train, steps=steps * extra)\n"
    )
    assert resolve(f"{file}:needy", ["steps=3", "extra=2", "data=1"]).steps == 6
    with pytest.raises(ConfigError, match="needy needs 'steps'"):
        resolve(str(file))


def test_a_factory_that_makes_no_task_is_no_recipe() -> None:
    with pytest.raises(DiscoveryError, match="a recipe makes a Partial"):
        resolve("config_samples.big_model")


def test_factories_of_the_workspace_are_values(workspace: Path) -> None:
    (workspace / "recipes" / "models.py").write_text(
        "import nemorun as run\nfrom config_samples import Model\n"
        "@run.factory\ndef wide(by: int = 2):\n    return Model(hidden_size=512 * by)\n"
    )
    assert resolve("mine", ["model=wide"], workspace).model == Model(hidden_size=1024)
    assert resolve("mine", ["model=wide(by=3)"], workspace).model == Model(hidden_size=1536)
    said = r"'wid' is none of Model, WideModel\. And there is no recipe 'wid'; did you mean 'wide'"
    with pytest.raises(OverrideError, match=said):
        resolve("mine", ["model=wid"], workspace)


def test_factories_of_the_same_file_are_values(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "loose.py").write_text(
        "import nemorun as run\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Thing:\n    x: int = 1\n"
        "@run.factory\ndef thing(by: int):\n    return Thing(x=by)\n"
        "def job(thing: Thing):\n    return thing.x\n"
    )
    assert resolve("loose.py:job", ["thing=thing(by=3)"])() == 3


def test_a_module_that_is_imported_is_not_loaded_again() -> None:
    file = Path(__file__).parent / "config_samples.py"
    assert find(f"{file}:tiny").factory is tiny


def test_calling_a_factory_with_texts() -> None:
    assert call_factory(find("config_samples.big_model"), "hidden_size=16", "num_heads=2") == Model(16, 2)
    assert call_factory(find("config_samples.tiny")) == tiny()
    assert call_factory(find("config_samples.train"), "steps=3") == run.Partial(train, steps=3)
    assert call_factory(find("config_samples.big_model")) == big_model()
    assert call_factory(find("config_samples.Lora"), "rank=1")() == Lora(rank=1)


def test_a_mistaken_name_may_have_been_the_recipes_parameter(workspace: Path) -> None:
    with pytest.raises(OverrideError, match=r"'widht=8': .* did you mean 'width'\?"):
        resolve("mine", ["widht=8"], workspace)
    with pytest.raises(OverrideError, match=r"'TRAINER\.lr=8': .* did you mean 'trainer'\?"):
        resolve("mine", ["TRAINER.lr=8"], workspace)


def test_a_recipe_that_takes_any_name_gets_what_its_task_does_not_take(tmp_path: Path) -> None:
    (tmp_path / "loose_any.py").write_text(
        "import nemorun as run\ndef work(n=1, text=''): pass\n"
        "@run.factory\ndef any_name(**more): return run.Partial(work, text=repr(more))\n"
    )
    task = resolve(f"{tmp_path}/loose_any.py:any_name", ["n=2", "other=3"])
    assert (task.n, task.text) == (2, "{'other': 3}")
