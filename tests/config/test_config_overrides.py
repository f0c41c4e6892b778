"""Overrides: the named cases that other launchers get wrong, and properties of the parser."""

# ruff: noqa: UP007, UP045 (the older spellings of a union are cases, too)

from __future__ import annotations

import contextlib
import enum
import string
from pathlib import Path
from typing import Any, Literal, Optional, TypedDict, Union

import pytest
from config_samples import Access, Color, Lora, Model, Trainer, WideModel, big_model, tiny, train, untyped
from hypothesis import assume, given
from hypothesis import strategies as st

import nemorun as run
from nemorun.config import apply, expand_sweep, split_override, validate
from nemorun.config.overrides.values import Reader
from nemorun.errors import ConfigError, DiscoveryError, OverrideError

FACTORIES = {"big_model": big_model, "tiny": tiny, "builtins.int": int, "builtins.abs": abs}


class Settings(TypedDict, total=False):
    lr: float
    name: str


def with_kwargs(n: int = 0, **more: float) -> None: ...


def discover(name: str) -> Any:
    if name not in FACTORIES:
        raise DiscoveryError(f"there is no recipe '{name}'")
    return FACTORIES[name]


def changed(*overrides: str, recipe: Any = None) -> Any:
    recipe = tiny() if recipe is None else recipe
    apply(recipe, overrides, discover=discover)
    return recipe


def read(text: str, annotation: Any) -> Any:
    return Reader(discover).read(text, annotation)


def holding(**values: Any) -> Any:
    """A Partial of a function without types."""
    return run.Partial(untyped, **values)


# What users of other launchers suffer from


def test_applied_left_to_right() -> None:
    assert changed("n=1", "n+=1", "n=5", recipe=holding()).n == 5


def test_the_same_override_twice_applies_twice() -> None:
    assert changed("n=1", "n+=1", "n+=1", recipe=holding()).n == 3


def test_equal_lists_are_not_one_list() -> None:
    recipe = changed("model=[1,2]", "value=[1,2]", "value+=[3]", recipe=holding())
    assert (recipe.model, recipe.value) == ([1, 2], [1, 2, 3])


@pytest.mark.parametrize(
    "text", ["${HOME}", "???", "it's", "two words", " edge ", "'", '"', '"a" and "b"', "äß→日本"]
)
@pytest.mark.parametrize("name", ["name", "note", "run_id"])
def test_text_passes_through_untouched(text: str, name: str) -> None:
    assert changed(f"trainer.{name}={text}").trainer[name] == text


def test_quotes_around_the_whole_value_are_taken_off() -> None:
    assert changed("trainer.name='a b'").trainer.name == "a b"
    assert changed('trainer.note="None"').trainer.note == "None"


def test_a_parameter_may_be_called_run_id() -> None:
    assert changed("trainer.run_id=x").trainer.run_id == "x"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("betas=(0.8, 0.9)", (0.8, 0.9)),
        ("betas=[0.8,0.9]", (0.8, 0.9)),
        ("sizes=[1, 2, 3]", (1, 2, 3)),
        ("sizes=()", ()),
        ("tags={a, b}", {"a", "b"}),
        ("tags=['a,b']", {"a,b"}),
        ("color=BLUE", Color.BLUE),
        ("color=blue", Color.BLUE),
        ("color=Color.BLUE", Color.BLUE),
        ("precision=bf16", "bf16"),
        ("precision='bf16'", "bf16"),
        ("level=2", 2),
        ("note=None", None),
        ("note=null", None),
        ("note=", ""),
        ("either=3", 3),
        ("either=three", "three"),
        ("either='3'", "3"),
        ("either=None", None),
        ("limit=3", 3),
        ("limit=0.5", 0.5),
        ("bare_list=[1, a, None, true, [x, 2.5]]", [1, "a", None, True, ["x", 2.5]]),
        ("bare_dict={a: 1, 2: [x, 'y, z']}", {"a": 1, 2: ["x", "y, z"]}),
        ("bare_dict={'a': {'b': None}}", {"a": {"b": None}}),
        ("folder=/a b/c's", Path("/a b/c's")),
        ("layers=[{rank: 4}, Lora, Lora(enabled=true)]", [Lora(rank=4), Lora(), Lora(enabled=True)]),
        ("names=[it's, 'a, b', None]", ["it's", "a, b", "None"]),
        ("env={A: 1,2: x}", {"A": "1", "2": "x"}),
        ("env={PATH: a:b, 'k:1': ''}", {"PATH": "a:b", "k:1": ""}),
        ("table={1: [1, 2.5], 0x10: []}", {1: [1.0, 2.5], 16: []}),
        ("hook=builtins.abs", abs),
        ("error=KeyError", KeyError),
        ("lr=3e-4", 3e-4),
        ("lr=1", 1.0),
        ("max_steps=1_000", 1000),
        ("max_steps=1e6", 1_000_000),
    ],
)
def test_every_type_can_be_set(override: str, value: Any) -> None:
    recipe = changed(f"trainer.{override}")
    result = recipe.trainer[override.partition("=")[0]]
    assert result == value and type(result) is type(value)
    validate(recipe)


def test_a_dataclass_can_be_set() -> None:
    assert changed("model={hidden_size: 8, lora: {rank: 2}}").model == Model(hidden_size=8, lora=Lora(rank=2))
    assert changed("model=WideModel").model == run.Config(WideModel)
    assert changed("model.adapter=Lora(rank=3)", "model.adapter.rank+=1").model.adapter == Lora(rank=4)
    assert changed("model.adapter=None").model.adapter is None


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("max_steps=0", 0),
        ("name=", ""),
        ("name=''", ""),
        ("steps=[]", []),
        ("exclusive=False", False),
        ("env={}", {}),
    ],
)
def test_falsy_values_survive(override: str, value: Any) -> None:
    recipe = tiny()
    recipe.trainer.steps = [1]
    recipe.trainer.env = {"a": "b"}
    result = changed(f"trainer.{override}", recipe=recipe).trainer[override.partition("=")[0]]
    assert result == value and type(result) is type(value)


# Errors


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "trainer.max_step=1",
            "'trainer.max_step=1': Trainer has no argument 'max_step'; did you mean 'max_steps'",
        ),
        ("modle=3", "did you mean 'model'"),
        ("trainer.max_steps=many", "'many' is not int"),
        ("trainer.max_steps=1.5", "'1.5' is not int"),
        ("trainer.max_steps=", "'' is not int"),
        ("trainer.lr=fast", "'fast' is not float"),
        ("trainer.exclusive=maybe", "'maybe' is not bool"),
        ("trainer.precision=bf61", "'bf61' is not one of 'fp32' | 'bf16'"),
        ("trainer.color=green", "there are RED ('red'), BLUE ('blue')"),
        ("trainer.color=Blu", "did you mean 'BLUE'?"),
        ("trainer.betas=[1]", "has 1 items"),
        ("trainer.steps=1,2", "write [a, b]"),
        ("trainer.steps=[1, x]", "'x' is not int"),
        ("trainer.env={A}", "has no value"),
        ("trainer.limit=x", "'x' is not int | float | None"),
        ("trainer.error=builtins.int", "which is not type[Exception]"),
        ("trainer.layers[0].rank=1", "has 0 items"),
        ("trainer.env.A.b=1", "has no key 'A'"),
        ("trainer.name.x=1", "which has nothing called 'x'"),
        ("model.adapter.rank=1", "model.adapter is None: set model.adapter=Lora first"),
        ("model=huge", "there is no recipe 'huge'"),
        ("model=Wide", "'Wide' is none of Model, WideModel"),
        ("model.adapter=Lora(rnk=1)", "Lora has no argument 'rnk'; did you mean 'rank'?"),
        ("model=big_model(hidden=1)", "did you mean 'hidden_size'"),
        ("model=big_model(hidden_size=x)", "big_model: hidden_size: 'x' is not int"),
        ("model=big_model(1, 2, 3)", "takes 2 arguments"),
        ("model=tiny", "which is not Model"),
        ("trainer.note+=x", "trainer.note is None, which takes =, not +="),
        ("trainer.exclusive+=1", "takes =, not +="),
        ("trainer.name-=x", "takes =, +="),
        ("trainer.max_steps/=3", "is not int"),
        ("trainer.max_steps/=0", "division by zero"),
        ("trainer.steps-=[3]", "3 is not in it"),
        ("trainer", "is not an override"),
        ("--dryrun", "is not an override"),
        ("trainer.max_steps 3", "stopped at ' 3'"),
        ("=3", "is not an override"),
        ("@nowhere.yaml", "there is no file 'nowhere.yaml'"),
    ],
)
def test_what_does_not_apply_is_refused(override: str, message: str) -> None:
    with pytest.raises(OverrideError) as caught:
        changed(override)
    assert message in str(caught.value)
    assert f"'{override}" in str(caught.value)


# The operators and paths


@pytest.mark.parametrize(
    ("overrides", "name", "value"),
    [
        (["max_steps*=3"], "max_steps", 300),
        (["max_steps/=4"], "max_steps", 25),
        (["max_steps-=1"], "max_steps", 99),
        (["max_steps*=1.5"], "max_steps", 150),
        (["max_steps|=3"], "max_steps", 103),
        (["max_steps&=4"], "max_steps", 4),
        (["lr/=10"], "lr", 1e-4),
        (["lr*=2"], "lr", 2e-3),
        (["name+=-long"], "name", "tiny-long"),
        (["steps=[1]", "steps+=[2, 3]", "steps-=[1]"], "steps", [2, 3]),
        (["sizes=(1,)", "sizes+=(2,)"], "sizes", (1, 2)),
        (["tags|={a, b}", "tags&={b, c}"], "tags", {"b"}),
        (["tags|={a, b}", "tags-={b}"], "tags", {"a"}),
        (["env|={A: 1}", "env|={B: x}"], "env", {"A": "1", "B": "x"}),
        (["layers=[Lora]", "layers+=[Lora(rank=1)]", "layers[1].rank*=5"], "layers", [Lora(), Lora(rank=5)]),
        (["betas[1]=0.99"], "betas", (0.9, 0.99)),
        (["steps=[1,2]", "steps[-1]=5"], "steps", [1, 5]),
        (["env.MY-KEY=a=b", "env[x.y]=", "env['[q]']=1"], "env", {"MY-KEY": "a=b", "x.y": "", "[q]": "1"}),
        (["table[3]=[1]", "table[3][0]=2", "table.3+=[1]"], "table", {3: [2.0, 1.0]}),
    ],
)
def test_operators_and_paths(overrides: list[str], name: str, value: Any) -> None:
    result = changed(*(f"trainer.{one}" for one in overrides)).trainer[name]
    assert result == (pytest.approx(value) if isinstance(value, float) else value)
    assert type(result) is type(value)


def test_a_required_dataclass_is_made_when_it_is_written_into() -> None:
    recipe = run.Partial(train)
    apply(recipe, ["trainer.max_steps=3", "model.lora.rank=2"])
    assert recipe.trainer == Trainer(max_steps=3) and recipe.model == Model(lora=Lora(rank=2))


def test_a_factory_as_value() -> None:
    assert changed("model=big_model(num_heads=4)").model == Model(hidden_size=1024, num_heads=4)
    assert changed("model=big_model(32, num_heads=4)").model == Model(hidden_size=32)
    assert changed("model=big_model").model == Model(hidden_size=1024, num_heads=8)
    assert changed("model=WideModel(num_heads=2)").model == run.Config(WideModel, num_heads=2)


def test_a_factory_where_there_is_no_type() -> None:
    assert changed("model=big_model(hidden_size=8)", recipe=holding()).model == Model(
        hidden_size=8, num_heads=8
    )
    assert changed("model=big_model", recipe=holding(model=Model())).model == Model(
        hidden_size=1024, num_heads=8
    )
    assert changed("value=big_model", recipe=holding()).value == "big_model"
    assert changed("value=f(x)", recipe=holding()).value == "f(x)"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 0.0001),
        ("true", True),
        ("null", None),
        ("None", None),
        ("'1'", "1"),
        ("a: b", "a: b"),
        ("[a, b]", ["a", "b"]),
        ("{a: 1}", {"a": 1}),
        ("{HOME}", "{HOME}"),
        ("(x)", "(x)"),
        ("# x", "# x"),
        ("", ""),
        ("\\d", "\\d"),
        ("@me", "@me"),
    ],
)
def test_values_without_a_type(text: str, value: Any) -> None:
    assert changed(f"value={text}", recipe=holding()).value == value


def test_a_file_is_merged(tmp_path: Path) -> None:
    file = tmp_path / "more.yaml"
    file.write_text(
        "steps: 7\ntrainer: {max_steps: 3, lr: 1e-4}\nparts:\n  deep:\n    model: {hidden_size: 16}\n"
    )
    recipe = changed(f"@{file}:parts.deep", f"trainer=@{file}:trainer", "trainer.lr*=10")
    assert recipe.model == Model(hidden_size=16) and recipe.steps == 1
    assert recipe.trainer.max_steps == 3 and recipe.trainer.lr == pytest.approx(1e-3)
    with pytest.raises(OverrideError, match="train has no argument 'parts'"):
        changed(f"@{file}")
    with pytest.raises(OverrideError, match="has no section 'trianer'; did you mean 'trainer'"):
        changed(f"@{file}:trianer")


def test_a_file_with_a_whole_recipe_is_merged(tmp_path: Path) -> None:
    from nemorun.config import dumps

    file = tmp_path / "recipe.yaml"
    file.write_text(dumps(run.Partial(train, steps=9, model=Model(hidden_size=8))))
    recipe = changed("trainer.max_steps=5", f"@{file}")
    assert (recipe.steps, recipe.model.hidden_size, recipe.trainer.max_steps) == (9, 8, 5)
    with pytest.raises(OverrideError, match="configures train, not untyped"):
        changed(f"@{file}", recipe=holding())


def test_sweeps_are_a_grid() -> None:
    assert expand_sweep(["lr=1e-3,1e-4", "n=1,2"]) == [
        ["lr=1e-3", "n=1"],
        ["lr=1e-3", "n=2"],
        ["lr=1e-4", "n=1"],
        ["lr=1e-4", "n=2"],
    ]
    assert expand_sweep([]) == [[]]
    assert expand_sweep(["a.b[0]=[1,2],f(x, y=2),'a,b',it's"]) == [
        ["a.b[0]=[1,2]"],
        ["a.b[0]=f(x, y=2)"],
        ["a.b[0]='a,b'"],
        ["a.b[0]=it's"],
    ]
    for wrong in ("lr", "lr=", "lr+=1,2"):
        with pytest.raises(OverrideError):
            expand_sweep([wrong])


# Properties

any_text = st.text(st.characters(exclude_categories=()))


def is_quoted(text: str) -> bool:
    return len(text) > 1 and text[0] == text[-1] and text[0] in "'\""


@given(any_text)
def test_any_text_into_a_text_field_survives(text: str) -> None:
    assume(not is_quoted(text))
    assert read(text, str) == text
    assert read(text, Path) == Path(text)
    if text not in ("None", "null"):
        assert read(text, Optional[str]) == text


@given(any_text)
def test_any_text_survives_quoted(text: str) -> None:
    for annotation in (str, Optional[str], Union[int, str], Any):
        assert read(repr(text), annotation) == text


@given(any_text)
def test_splitting_loses_nothing(value: str) -> None:
    override = split_override(f"a.b[0].c={value}")
    assert (override.place, override.operator, override.value) == ("a.b[0].c", "=", value)


@given(any_text)
def test_what_is_no_override_is_refused_and_nothing_else_happens(text: str) -> None:
    try:
        override = split_override(text)
    except OverrideError:
        return
    assert text.startswith("@") or text.endswith(override.operator + override.value)


@given(any_text)
def test_any_text_is_a_value_or_is_refused_where_there_is_no_type(text: str) -> None:
    for annotation in (Any, list, dict, Model, Union[Model, int, None]):
        with contextlib.suppress(OverrideError, DiscoveryError):
            read(text, annotation)


@given(any_text)
def test_text_beside_a_class_survives(text: str) -> None:
    assume(not is_quoted(text) and text.strip() not in ("None", "null"))
    assume(not text.startswith("@") and "Model" not in text and "Lora" not in text)
    assert read(text, Union[Model, str, None]) == text or text in FACTORIES


typed_values = st.one_of(
    st.tuples(st.just(int), st.integers()),
    st.tuples(st.just(float), st.floats(allow_nan=False)),
    st.tuples(st.just(bool), st.booleans()),
    st.tuples(st.just(Optional[int]), st.none() | st.integers()),
    st.tuples(st.just(list[int]), st.lists(st.integers())),
    st.tuples(st.just(list[str]), st.lists(any_text)),
    st.tuples(st.just(tuple[str, int]), st.tuples(any_text, st.integers())),
    st.tuples(st.just(set[str]), st.sets(any_text, min_size=1)),
    st.tuples(
        st.just(dict[str, list[float]]), st.dictionaries(any_text, st.lists(st.floats(allow_nan=False)))
    ),
    st.tuples(st.just(dict[int, str | None]), st.dictionaries(st.integers(), st.none() | any_text)),
    st.tuples(st.just(Any), st.recursive(st.integers() | any_text | st.none(), lambda one: st.lists(one))),
    st.tuples(st.just(Literal[1, 2, "x", None]), st.sampled_from([1, 2, "x", None])),
)


@given(typed_values)
def test_a_value_as_python_writes_it_is_read_back(case: tuple[Any, Any]) -> None:
    annotation, value = case
    result = read(repr(value), annotation)
    assert result == value and type(result) is type(value)


operations = st.lists(st.tuples(st.sampled_from(["=", "+=", "-=", "*="]), st.integers(-9, 9)), max_size=8)


@given(operations)
def test_a_chain_of_overrides_does_what_python_does(chain: list[tuple[str, int]]) -> None:
    namespace = {"n": 1}
    for operator, operand in chain:
        exec(f"n {operator} {operand}", namespace)
    recipe = changed(*(f"n{operator}{operand}" for operator, operand in chain), recipe=holding())
    assert recipe.n == namespace["n"]


names = st.text(string.ascii_letters + "_", min_size=1)


@given(st.lists(st.tuples(st.booleans(), names), min_size=1), any_text)
def test_paths_are_read_back(steps: list[tuple[bool, str]], value: str) -> None:
    path = "first" + "".join(f"[{name}]" if item else f".{name}" for item, name in steps)
    override = split_override(f"{path}={value}")
    assert override.place == path and [step.item for step in override.path[1:]] == [item for item, _ in steps]


def test_every_enum_member_can_be_set_by_name_and_value() -> None:
    class Level(enum.IntEnum):
        LOW = 1
        HIGH = 2

    for member in Level:
        assert read(member.name, Level) is member and read(str(member.value), Level) is member
    assert read("WRITE", Access) is Access.WRITE


def test_the_class_of_a_union_that_is_named_is_the_one_that_is_meant() -> None:
    assert read("WideModel(num_heads=2)", Union[Lora, Model]) == run.Config(WideModel, num_heads=2)
    with pytest.raises(ConfigError, match="Lora has no argument 'rnk'; did you mean 'rank'"):
        read("Lora(rnk=2)", Union[Lora, Model])
    assert read("bool", Union[int, str]) == "bool"  # a subclass of int, and a word


def test_a_typed_dictionary_reads_each_value_by_its_key() -> None:
    assert read("{lr: 1, name: 2}", Settings) == {"lr": 1.0, "name": "2"}
    assert type(read("{lr: 1}", Settings)["lr"]) is float


def test_an_operation_whose_result_does_not_fit() -> None:
    with pytest.raises(OverrideError, match=r"'precision\+=x': precision: 'fp32x' is not 'fp32' \| 'bf16'"):
        apply(tiny().trainer, ["precision+=x"])


def test_names_that_only_kwargs_take_have_their_type() -> None:
    recipe = changed("more=1", "n=2", recipe=run.Partial(with_kwargs))
    assert (recipe.more, type(recipe.more)) == (1.0, float)
    with pytest.raises(OverrideError, match="'x' is not float"):
        changed("more=x", recipe=recipe)
    recipe.more = "x"
    with pytest.raises(ConfigError, match="more: 'x' is not float"):
        validate(recipe)
