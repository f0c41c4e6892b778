"""The tree that is shown of a configuration, and the differences of two."""

from __future__ import annotations

from pathlib import Path

from config_samples import Lora, Model, Trainer, tiny, train

import nemorun as run
from nemorun.config import MISSING, diff, tree


def test_the_tree_has_every_argument_with_type_and_doc() -> None:
    recipe = tiny(hidden_size=128)
    recipe.trainer.layers = [Lora(rank=1)]
    rows = {row.path: row for row in tree(recipe)}
    assert [path for path in rows if "." not in path and "[" not in path] == [
        "model",
        "trainer",
        "data",
        "steps",
    ]
    assert rows["model.hidden_size"] == (
        "model.hidden_size",
        128,
        "int",
        "Width of the residual stream.",
        False,
    )
    assert rows["model.num_heads"].is_default and rows["model.lora.rank"] == (
        "model.lora.rank",
        8,
        "int",
        "",
        True,
    )
    assert rows["trainer.max_steps"].doc == "Optimizer steps in all."
    assert rows["trainer.layers[0].rank"].value == 1
    assert rows["model"].value == recipe.model and rows["model"].doc == "What is trained."
    assert rows["steps"].doc == "How often, in all."
    types = {
        name: rows[f"trainer.{name}"].type
        for name in ("note", "precision", "betas", "folder", "hook", "error")
    }
    assert types == {
        "note": "str | None",
        "precision": "'fp32' | 'bf16'",
        "betas": "tuple[float, float]",
        "folder": "Path",
        "hook": "Callable[[int], int] | None",
        "error": "type[Exception]",
    }


def test_looking_changes_nothing() -> None:
    recipe = run.Partial(train, model=run.Config(Model))
    tree(recipe)
    assert recipe.__arguments__ == {"model": run.Config(Model)} and recipe.model.__arguments__ == {}
    assert next(row for row in tree(recipe) if row.path == "trainer").value is MISSING


def test_differences() -> None:
    left, right = tiny(), tiny(hidden_size=128)
    right.trainer.folder = Path("x")
    right.trainer.steps = [1]
    right.trainer.env = {"A": "1"}
    right.steps = True
    right.data = Lora()
    assert diff(left, right) == [
        ("model.hidden_size", 64, 128),
        ("trainer.folder", Path("out"), Path("x")),
        ("trainer.steps[0]", MISSING, 1),
        ("trainer.env['A']", MISSING, "1"),
        ("data", None, run.Config(Lora)),
        ("steps", 1, True),
    ]
    assert diff(left, tiny()) == []


def test_a_default_counts_as_its_value() -> None:
    assert diff(run.Config(Trainer), Trainer(max_steps=100)) == []
    assert diff({"a": float("nan")}, {"a": float("nan")}) == []
    assert diff(run.Config(Lora), run.Config(Model)) == [("", run.Config(Lora), run.Config(Model))]
