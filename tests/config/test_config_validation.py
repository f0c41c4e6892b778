"""Types are checked before anything runs, nested, with the path of the bad field; validate() is called."""

# ruff: noqa: UP007, UP045 (the older spellings of a union are cases, too)

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, Optional, Protocol, TypedDict, Union

import pytest
from config_samples import Access, Color, Lora, Model, Trainer, WideModel, tiny, train, untyped
from pydantic import Field

import nemorun as run
from nemorun.config import validate
from nemorun.errors import ConfigError

Positive = Annotated[int, Field(gt=0)]
UserId = NewType("UserId", int)


class Runs(Protocol):
    speed: int


class Settings(TypedDict, total=False):
    lr: float
    inner: Lora


class Needed(TypedDict):
    lr: float


@dataclass
class Holder:
    value: Any = None


def check(value: Any, annotation: Any) -> Any:
    """The value as it is stored after validation against one type."""

    def target(value: Any) -> None: ...

    target.__annotations__ = {"value": annotation}
    partial = run.Partial(target, value=value)
    validate(partial)
    return partial.value


LOSSLESS = [
    ("a/b", Path, Path("a/b")),
    (3, float, 3.0),
    ("red", Color, Color.RED),
    ("BLUE", Color, Color.BLUE),
    (2, Access, Access.WRITE),
    ([1, 2], tuple[int, ...], (1, 2)),
    ([1, 2], tuple[float, float], (1.0, 2.0)),
    (["a", "a"], set[str], {"a"}),
    ((1,), list[int], [1]),
    (["x"], list[Path], [Path("x")]),
    ({"a": ["red"]}, dict[str, list[Color]], {"a": [Color.RED]}),
    ("x", Optional[Path], Path("x")),
    ("x", Path | None, Path("x")),
    (None, Optional[int], None),
    ("3", Union[int, str], "3"),
    (["3", 4], list[int | str], ["3", 4]),
    (2, Literal[1, 2], 2),
    (3, Positive, 3),
    ({"lr": 1, "inner": run.Config(Lora)}, Settings, {"lr": 1.0, "inner": run.Config(Lora)}),
    (3, UserId, 3),
    ((1, 2), Sequence[int], (1, 2)),
    ({"a": 1}, Mapping[str, int], {"a": 1}),
    (KeyError, type[Exception], KeyError),
    (len, Callable[..., int], len),
    (object(), Any, None),
    (3, Runs, 3),
    ([1, "a"], list, [1, "a"]),
    (True, bool, True),
    (b"x", bytes, b"x"),
]


@pytest.mark.parametrize(("value", "annotation", "stored"), LOSSLESS)
def test_what_loses_nothing_is_accepted(value: Any, annotation: Any, stored: Any) -> None:
    result = check(value, annotation)
    if annotation is not Any:
        assert result == stored and type(result) is type(stored)


REFUSED = [
    (True, int, "True is not int"),
    (True, float, "True is not float"),
    ("3", int, "'3' is not int"),
    (3.0, int, "3.0 is not int"),
    (3, str, "3 is not str"),
    (1, bool, "1 is not bool"),
    (None, int, "None is not int"),
    ("x", Optional[int], r"'x' is not int \| None"),
    (True, Literal[1, 2], r"True is not 1 \| 2"),
    ("green", Color, "'green' is not Color; one of 'red', 'blue'"),
    (True, Access, "True is not Access"),
    ("abc", list[str], r"'abc' is not list\[str\]"),
    ({1}, list[int], r"\{1\} is not list\[int\]"),
    ([1, "{a}"], list[int], r"value\[1\]: '{a}' is not int"),
    ((1,), tuple[int, int], r"\(1,\) is not tuple\[int, int\]"),
    ({"a": [1, None]}, dict[str, list[int]], r"value\['a'\]\[1\]: None is not int"),
    (0, Positive, "0 is not allowed: .*greater than 0"),
    (int, type[Exception], "int"),
    (3, Callable[..., int], "3 is not Callable"),
    (3, Model, "3 is not Model"),
    (run.Config(Lora), Model, "is not Model"),
    (run.Partial(train), Model, "is not Model"),
    (run.Config(Lora), Optional[list[Lora]], "is not list"),
    ([run.Config(Model)], list[Lora], r"value\[0\]: .*is not Lora"),
    (run.Config(Lora), Callable[..., int], "is not Callable"),
    (run.Config(train), int, "is not int"),  # it returns a dictionary
    ({"lr": "x"}, Settings, r"value\['lr'\]: 'x' is not float"),
    ({"rl": 1.0}, Settings, "is not Settings, which has lr, inner"),
    ({}, Needed, "is not Needed, which has lr"),
]


@pytest.mark.parametrize(("value", "annotation", "message"), REFUSED)
def test_what_does_not_fit_is_refused(value: Any, annotation: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(value, annotation)


def test_configurations_stand_for_what_they_build() -> None:
    for value, annotation in [
        (run.Config(Model), Model),
        (run.Config(WideModel), Optional[Model]),
        ([run.Config(Lora)], list[Lora]),
        ({"a": run.Config(Lora)}, dict[str, Lora | None]),
        (run.Partial(train), Callable[..., Any]),
    ]:
        assert check(value, annotation) == value


def test_every_bad_field_is_listed_with_its_path() -> None:
    recipe = tiny()
    recipe.trainer.max_steps = "many"
    recipe.trainer.layers = [Lora(), Lora(rank=None)]  # type: ignore[arg-type]
    recipe.model.lora.enabled = 1
    recipe.steps = None
    with pytest.raises(ConfigError) as caught:
        validate(recipe)
    assert str(caught.value).splitlines() == [
        "model.lora.enabled: 1 is not bool",
        "trainer.max_steps: 'many' is not int",
        "trainer.layers[1].rank: None is not int",
        "steps: None is not int",
    ]


def test_missing_arguments_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        validate(run.Partial(train, data=run.Config(_needy)))
    assert str(caught.value).splitlines() == [
        "data.x: _needy needs it, and it is not set",
        "model: train needs it, and it is not set",
        "trainer: train needs it, and it is not set",
    ]


def _needy(x: int) -> int:
    return x


def positional(given: int, other: int = 0, /, *, named: int = 0) -> None: ...


def test_what_can_only_be_given_by_position_is_refused() -> None:
    with pytest.raises(ConfigError, match="given: positional takes it by position only"):
        validate(run.Partial(positional))
    validate(run.Partial(untyped, model=run.Partial(positional, named=1)))  # who calls it gives the rest


def test_a_nested_partial_may_lack_arguments() -> None:
    validate(run.Partial(train, model=Model(), trainer=Trainer(), data=run.Partial(_needy)))


def test_validate_methods_are_called_from_below() -> None:
    recipe = tiny()
    recipe.model.num_heads = 5
    with pytest.raises(ConfigError, match=r"^model: self.hidden_size % self.num_heads == 0 does not hold$"):
        validate(recipe)


@dataclass
class Strict:
    inner: Lora | None = None
    seen: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.seen == ["no"]:
            raise ValueError("no is not allowed")

    def validate(self) -> None:
        if self.inner and self.inner.rank > 8:
            raise ConfigError("rank is too large")


def test_errors_of_validate_and_post_init_have_the_path() -> None:
    with pytest.raises(ConfigError, match=r"^data\['a'\]\[0\]: rank is too large$"):
        validate(run.Partial(train, model=Model(), trainer=Trainer(), data={"a": [Strict(Lora(rank=9))]}))
    with pytest.raises(ConfigError, match=r"^data: no is not allowed$"):
        validate(run.Partial(train, model=Model(), trainer=Trainer(), data=run.Config(Strict, seen=["no"])))
    with pytest.raises(ConfigError, match=r"^Strict: no is not allowed$"):
        validate(run.Config(Strict, seen=["no"]))


def test_only_dataclasses_are_built() -> None:
    built = []

    class Heavy:
        def __init__(self) -> None:
            built.append(1)

    validate(run.Partial(train, model=Model(), trainer=Trainer(), data=run.Config(Strict, inner=None)))
    validate(run.Config(Holder, value=run.Config(Heavy)))
    assert built == []


def test_converted_values_are_stored_back() -> None:
    recipe = tiny()
    recipe.trainer.folder = "a"
    recipe.trainer.betas = [1, 2]
    validate(recipe)
    assert recipe.trainer.folder == Path("a") and recipe.trainer.betas == (1.0, 2.0)


def test_a_plain_configuration_is_checked_without_pydantic() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from config_samples import tiny; "
        "from nemorun.config import validate; validate(tiny(hidden_size=128)); "
        "sys.exit('pydantic was loaded' if 'pydantic' in sys.modules else 0)"
    )
    subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent)], check=True)


def test_types_that_cannot_be_resolved_do_not_hide_the_others() -> None:
    def target(a: Unknown, b: int) -> None: ...  # type: ignore[name-defined] # noqa: F821

    with pytest.raises(ConfigError, match=r"^b: 'x' is not int$"):
        validate(run.Partial(target, a=1, b="x"))
