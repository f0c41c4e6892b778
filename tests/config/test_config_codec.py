"""YAML: a round trip loses nothing, the text is readable, reading executes nothing but imports."""

from __future__ import annotations

import collections
import enum
import functools
import io
import math
import os.path
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from config_samples import Access, Color, Lora, Model, Trainer, tiny, train
from hypothesis import given
from hypothesis import strategies as st

import nemorun as run
from nemorun.config import dumps, loads
from nemorun.errors import ConfigError

any_text = st.text(st.characters(exclude_categories=()))
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    any_text,
    st.binary(),
    any_text.map(Path),
    st.sampled_from(
        [Color.RED, Access.READ, Access.READ | Access.WRITE, Access(0), len, math.sqrt, int, Lora, train]
    ),
    st.sampled_from(
        ["yes", "no", "null", "~", "1e3", "1_0", "010", "0x1f", "12:30:00", "2024-01-01", "<<", "=", "!x"]
    ),
)
keys = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    any_text,
    st.tuples(st.integers(), any_text),
)
hashables = st.integers() | any_text


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(inner),
        st.tuples(inner, inner),
        st.dictionaries(keys, inner),
        st.sets(hashables),
        st.frozensets(hashables),
        st.builds(lambda one: run.Config(Trainer, bare_list=one), inner),
        st.builds(lambda one: run.Partial(train, data=one), inner),
    )


def same(left: Any, right: Any) -> bool:
    """Equal to the type, the sign of zero, the order of keys, and with nan equal to itself."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return repr(left) == repr(right)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    if isinstance(left, (run.Config, run.Partial)):
        return left.__fn_or_cls__ is right.__fn_or_cls__ and same(left.__arguments__, right.__arguments__)
    return bool(left == right)


@given(st.recursive(leaves, containers, max_leaves=20))
def test_a_round_trip_loses_nothing(value: Any) -> None:
    text = dumps(value)
    result = loads(text)
    assert same(value, result)
    assert dumps(result) == text


def test_the_text_is_readable() -> None:
    recipe = tiny(hidden_size=128)
    recipe.trainer.betas = (0.8, 0.9)
    recipe.trainer.color = Color.BLUE
    recipe.trainer.folder = Path("a/b")
    recipe.trainer.hook = len
    recipe.trainer.note = "first line\nsecond line\n"
    recipe.trainer.layers = [Lora(rank=1)]
    recipe.data = run.Partial(train, steps=3)
    assert dumps(recipe) == (
        "_target_: config_samples.train\n"
        "_partial_: true\n"
        "model:\n"
        "  _target_: config_samples.Model\n"
        "  hidden_size: 128\n"
        "trainer:\n"
        "  _target_: config_samples.Trainer\n"
        "  name: tiny\n"
        "  betas: !tuple [0.8, 0.9]\n"
        "  color: !enum config_samples.Color.BLUE\n"
        "  folder: !path a/b\n"
        "  hook: !fn builtins.len\n"
        "  note: |\n"
        "    first line\n"
        "    second line\n"
        "  layers:\n"
        "  - _target_: config_samples.Lora\n"
        "    rank: 1\n"
        "data:\n"
        "  _target_: config_samples.train\n"
        "  _partial_: true\n"
        "  steps: 3\n"
    )


def test_written_by_hand_as_yaml_1_2() -> None:
    text = "lr: 1e-4\nflag: true\nword: no\ntime: 12:30:00\nnothing:\nday: 2024-01-01\nn: -3\noctal: 010\n"
    assert loads(text) == {
        "lr": 1e-4,
        "flag": True,
        "word": "no",
        "time": "12:30:00",
        "nothing": None,
        "day": "2024-01-01",
        "n": -3,
        "octal": "010",
    }
    assert loads("") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not valid YAML"),
        ("a: 1\na: 2", "line 2, column 1: the key 'a' stands here twice"),
        ("a: !!python/object/apply:os.system [ls]", "unknown tag"),
        ("!!python/name:os.system", "unknown tag"),
        ("a: !what 3", "line 1, column 4: unknown tag !what"),
        ("_target_: config_samples.Modle", "config_samples has no 'Modle'; did you mean 'Model'"),
        ("_target_: no_such_module.x", "there is no module 'no_such_module'"),
        ("_target_: config_samples.Model\nhidden: 3", "Model has no argument 'hidden'"),
        ("_target_: config_samples.Model.hidden_size", "takes a function or a class, not 64"),
        ("_target_: 'os; x'", "is not a name like"),
        ("_target_: script:gone.py:x", "the script 'gone.py' is not in"),
        ("!enum config_samples.Color.GREEN", "has no member 'GREEN'"),
        ("!enum config_samples.Model.x", "is not an enum"),
        ("[1]: 2", "cannot be a key"),
        ("? !tuple [[1]]\n: 2", "cannot be a key"),
        ("!escaped ä", "line 1, column 1"),
        ("!enum config_samples.Color.", "has no member ''"),
        ("!!int x", "line 1"),
        ("a: 1\n  b: 2", "not valid YAML: line 2, column 4: mapping values"),
        ("&a [*a]", "an alias within itself"),
        ("!set [[1]]", "line 1, column 1: a list or a mapping cannot be in a set"),
        ("!fn os", "os is no function or class"),
        ("_target_: config_samples.Model\n_partial_: 'no'", "_partial_ is 'no'; it must be true or false"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loads(text)
    assert message in str(caught.value)


def local() -> Any:
    def inner() -> None: ...

    return inner


class Odd(collections.OrderedDict[str, int]):
    pass


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda: None, "data: a lambda cannot be found by name"),
        (local(), "data: 'local.<locals>.inner' of a function's body"),
        (io.StringIO(), "data: a value of type _io.StringIO cannot be written"),
        (Odd(), "data: a value of type test_config_codec.Odd"),
        ([1, {"a": io.StringIO()}], "data[1]['a']: a value of type"),
        (functools.partial(len), "data: functools.partial(<built-in function len>) cannot be written"),
    ],
)
def test_what_cannot_be_written_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        dumps(run.Partial(train, data=value))
    assert message in str(caught.value)


def test_a_function_hidden_by_another_is_refused() -> None:
    hidden = type("Model", (), {"__module__": "config_samples", "__qualname__": "Model"})
    with pytest.raises(ConfigError, match=r"is not found as 'config_samples\.Model'"):
        dumps(run.Config(hidden))


def test_dataclasses_in_lists_are_written_as_configs() -> None:
    recipe = tiny()
    recipe.trainer.layers.append(Lora(rank=3))
    assert loads(dumps(recipe)) == recipe
    assert loads(dumps(Model(hidden_size=8))) == Model(hidden_size=8)


def test_a_mapping_that_looks_like_a_config() -> None:
    value = {"_target_": "os.system", "_path_": ["x"]}
    assert loads(dumps(value)) == value


def test_import_roots_below_the_code_root_are_carried(tmp_path: Path) -> None:
    """A module found by way of `src/` is found again, and in the frozen copy, not where it was."""
    for copy in ("live", "frozen"):
        (tmp_path / copy / "src" / "deep").mkdir(parents=True)
        (tmp_path / copy / "src" / "deep" / "mod.py").write_text(f"def where(): return {copy!r}\n")
    write = (
        "import sys; sys.path.insert(0, 'src'); from pathlib import Path; import nemorun as run; "
        "from nemorun.config import dumps; import deep.mod; "
        "print(dumps(run.Partial(deep.mod.where), code_root=Path('.')))"
    )
    text = subprocess.run(
        [sys.executable, "-c", write], cwd=tmp_path / "live", check=True, capture_output=True, text=True
    ).stdout
    assert text.splitlines()[:2] == ["_path_: [src]", "_target_: deep.mod.where"]
    read = (
        "import sys; from pathlib import Path; from nemorun.config import loads; "
        "print(loads(sys.argv[1], code_root=Path(sys.argv[2]))())"
    )
    result = subprocess.run(
        [sys.executable, "-c", read, text, str(tmp_path / "frozen")],
        check=True,
        capture_output=True,
        text=True,
    )
    assert result.stdout == "frozen\n"


def test_an_enum_of_a_functions_body_is_refused() -> None:
    class Flavour(enum.Enum):
        A = os.path.sep

    with pytest.raises(ConfigError, match="of a function's body"):
        dumps(Flavour.A)
