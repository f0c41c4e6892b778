"""Partial and Config: read and write through, nothing shared, equality by value, building."""

from __future__ import annotations

import copy
import functools
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from config_samples import Lora, Model, Trainer, tiny, train

import nemorun as run
from nemorun.config import resources_of
from nemorun.errors import ConfigError


def test_attributes_read_and_write_through() -> None:
    recipe = tiny()
    assert recipe.trainer.max_steps == 100
    recipe.trainer.max_steps = 2000
    recipe.model.lora.enabled = True
    recipe.model.lora.rank = 16
    assert recipe.trainer.max_steps == 2000
    assert recipe() == {"hidden_size": 64, "max_steps": 2000, "steps": 1}
    assert recipe.model.build() == Model(lora=Lora(True, 16))


def test_unknown_names_fail_where_they_are_written() -> None:
    recipe = tiny()
    with pytest.raises(ConfigError, match="Trainer has no argument 'max_step'; did you mean 'max_steps'"):
        recipe.trainer.max_step = 3
    with pytest.raises(ConfigError, match="did you mean 'trainer'"):
        run.Partial(train, trainr=1)
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        recipe(step=3)
    assert not hasattr(recipe, "max_step")


def test_a_required_argument_without_value() -> None:
    with pytest.raises(ConfigError, match="'model' of train is not set"):
        _ = run.Partial(train).model
    with pytest.raises(ConfigError, match="train needs 'model', 'trainer'"):
        run.Partial(train)()
    assert run.Partial(train)(model=Model(), trainer=Trainer())["steps"] == 1


def test_nothing_is_shared() -> None:
    trainer, steps = run.Config(Trainer), [1, 2]
    one, two = (
        run.Partial(train, trainer=trainer, data=steps),
        run.Partial(train, trainer=trainer, data=steps),
    )
    one.trainer.max_steps = 7
    one.data.append(3)
    assert (two.trainer.max_steps, two.data, steps, trainer.max_steps) == (100, [1, 2], [1, 2], 100)
    other = copy.deepcopy(one)
    other.trainer.steps.append(4)
    assert one.trainer.steps == [] and copy.copy(one) == one and other != one


def test_defaults_are_not_shared_either() -> None:
    one, two = run.Config(Trainer), run.Config(Trainer)
    one.steps.append(1)
    assert one.steps == [1] and two.steps == [] and run.Config(Trainer).build().steps == []


def test_a_dataclass_becomes_a_config() -> None:
    recipe = run.Partial(train, model=Model(hidden_size=128), data=[Lora(rank=2)])
    assert recipe.model.__arguments__ == {"hidden_size": 128}
    assert recipe.model == Model(hidden_size=128) != Model()
    assert recipe.data[0] == Lora(rank=2)
    assert recipe(trainer=Trainer())["hidden_size"] == 128


def test_equality_counts_a_default_as_its_value() -> None:
    assert run.Config(Lora, rank=8) == run.Config(Lora)
    assert run.Config(Lora, rank=9) != run.Config(Lora)
    assert run.Config(Lora) != run.Config(Model)
    one = run.Config(Model)
    _ = one.lora
    assert one == run.Config(Model)
    with pytest.raises(TypeError):
        hash(one)


def test_arguments_named_like_methods() -> None:
    def make(build: int = 1, target: int = 2) -> int:
        return build + target

    partial = run.Partial(make, build=5, target=6)
    assert partial["build"] == 5 and partial() == 11 and callable(partial.build)
    with pytest.raises(ConfigError, match=r"x\['build'\]"):
        partial.build = 3
    del partial["build"]
    assert partial["build"] == 1
    del partial.target
    assert partial() == 3


def test_build_builds_what_is_nested() -> None:
    def train(model: Any, loss: Any, many: Any) -> Any:
        return model, loss, many

    loss = run.Partial(_scale, by=run.Config(Lora))
    made = run.Partial(train, model=run.Config(Model), loss=loss, many={"a": [(run.Config(Lora),)]}).build()
    assert isinstance(made, functools.partial)
    model, scale, many = made()
    assert model == Model() and scale(value=2) == 16 and many == {"a": [(Lora(),)]}


def _scale(value: int, by: Lora) -> int:
    return value * by.rank


def test_a_config_as_a_default_is_built() -> None:
    def train(model: Any = run.Config(Model, hidden_size=8)) -> Any:  # noqa: B008 # that is the case
        return model

    partial = run.Partial(train)
    assert partial() == Model(hidden_size=8)
    partial.model.hidden_size = 16
    assert partial() == Model(hidden_size=16) and run.Partial(train)() == Model(hidden_size=8)


def test_any_name_where_the_target_takes_any() -> None:
    def collect(**values: int) -> dict[str, int]:
        return values

    partial = run.Partial(collect, a=1)
    partial.b = 2
    assert partial() == {"a": 1, "b": 2}


def test_what_is_no_callable_is_refused() -> None:
    with pytest.raises(ConfigError, match="takes a function or a class"):
        run.Partial(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="set cannot hold"):
        run.Partial(train, data={_Frozen()})


@dataclass(frozen=True)
class _Frozen:
    x: int = 1
    y: list[int] = field(default_factory=list, hash=False)


def test_factories_stay_functions() -> None:
    assert tiny(hidden_size=32).model.hidden_size == 32
    assert tiny.__name__ == "tiny"

    @run.factory(name="other")
    def named() -> run.Partial[Any]:
        return tiny()

    assert named().model.hidden_size == 64
    with pytest.raises(ConfigError, match="marks functions"):
        run.factory(Model)


def test_resources_come_from_the_arguments() -> None:
    @run.resources(
        lambda trainer, model, **_: run.Resources(nodes=trainer.max_steps, ntasks_per_node=model.num_heads)
    )
    def task(trainer: Trainer, model: Model = Model(num_heads=2), n: int = 1) -> None:  # noqa: B008
        pass

    assert resources_of(run.Partial(task, trainer=Trainer(max_steps=3))) == run.Resources(3, 2)
    assert resources_of(run.Partial(train)) is None
    with pytest.raises(ConfigError, match="needs 'trainer'"):
        resources_of(run.Partial(task))


def test_importing_is_cheap() -> None:
    code = (
        "import sys, nemorun.config as c; c.Partial; c.factory; "
        "heavy = {'yaml', 'pydantic', 'asyncio', 'importlib.metadata', 'torch', 'rich'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_name_is_exported() -> None:
    import nemorun.config

    for name in nemorun.config.__all__:
        assert callable(getattr(nemorun.config, name)) or name == "MISSING"


def test_repr_names_the_target_and_the_arguments() -> None:
    assert (
        repr(run.Config(Trainer, max_steps=3, folder=Path("x")))
        == "Config(Trainer, max_steps=3, folder=PosixPath('x'))"
    )


def test_a_functools_partial_is_its_function_with_its_arguments() -> None:
    bound = functools.partial(train, steps=3, data="a")
    assert run.Partial(bound, data="b") == run.Partial(train, steps=3, data="b")
    with pytest.raises(ConfigError, match="train is given 3 without a name: write NAME=VALUE"):
        run.Partial(train, 3)
    with pytest.raises(ConfigError, match="bind them by name"):
        run.Partial(functools.partial(train, 1))
