"""Workspaces are found, settings are merged and checked, executors are made of them."""

import os
import stat
from pathlib import Path
from unittest.mock import Mock

import pytest

from nemorun.errors import ConfigError, DiscoveryError
from nemorun.executors.configured import as_config, executor, executor_config
from nemorun.executors.local import LocalExecutor
from nemorun.workspace import CodeSettings, find_workspace, home


def settings(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "nemorun.yaml").write_text(text)
    return folder


@pytest.fixture
def users() -> Path:
    """The folder of the user's own settings."""
    return Path(os.environ["XDG_CONFIG_HOME"]) / "nemorun"


def test_home_is_private(nemorun_home: Path) -> None:
    assert home() == nemorun_home
    assert stat.S_IMODE(nemorun_home.stat().st_mode) == 0o700


def test_a_home_that_cannot_be_made_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NEMORUN_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(ConfigError, match="set NEMORUN_HOME"):
        home()


def test_the_nearest_settings_make_the_workspace_then_git_then_the_folder(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    assert (find_workspace(inner).root, find_workspace(inner).kind) == (inner, "folder")
    (tmp_path / "a" / ".git").mkdir()
    assert (find_workspace(inner).root, find_workspace(inner).kind) == (tmp_path / "a", "git")
    settings(tmp_path, "")
    assert (find_workspace(inner).root, find_workspace(inner).kind) == (tmp_path, "yaml")


def test_the_workspaces_settings_stand_on_top_of_the_users(tmp_path: Path, users: Path) -> None:
    settings(
        users,
        "executors: {both: {type: local, nodes: 1}, mine: {type: local}}\ndefault_executor: mine\n"
        "code: {max_size: 1kB, exclude: [a]}\n",
    )
    settings(tmp_path, "executors: {both: {type: local, nodes: 2}}\ncode: {max_size: 2.5 MB}\n")
    found = find_workspace(tmp_path)
    assert found.settings.default_executor == "mine"
    assert found.settings.code == CodeSettings(("a",), 2_500_000, "include")
    assert executor("both", found) == LocalExecutor(nodes=2)
    assert executor(None, found) == LocalExecutor()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("executers: {}", r"unknown key 'executers'; known: executors.*did you mean 'executors'"),
        ("code: {exclud: []}", "did you mean 'exclude'"),
        ("code: {exclude: data}", r"code\.exclude is 'data'; it must be a list"),
        ("code: {max_size: huge}", r"code\.max_size is 'huge'.*50MB"),
        ("code: {uncommitted: maybe}", "must be 'include' or 'refuse'"),
        ("executors: [local]", "must be a mapping"),
        ("executors: {x: {nodes: 1}}", "needs either 'type'"),
        ("default_executor: 3", "must be the name of an executor"),
        ("a: [", "cannot be read"),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, text: str, message: str) -> None:
    settings(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        find_workspace(tmp_path)
    assert str(tmp_path / "nemorun.yaml") in str(caught.value)


def test_an_unknown_executor_is_refused_with_the_nearest(tmp_path: Path) -> None:
    settings(tmp_path, "executors: {cluster: {type: local}}")
    with pytest.raises(
        DiscoveryError, match=r"no executor 'clutser'; configured: cluster, k8s.*local.*'cluster'\?"
    ):
        executor_config("clutser", find_workspace(tmp_path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [("nods: 1", "did you mean 'nodes'"), ("nodes: many", "nodes"), ("type: slrum", "slrum")],
)
def test_bad_fields_of_an_executor_name_the_file(tmp_path: Path, fields: str, message: str) -> None:
    settings(tmp_path, f"executors:\n  x:\n    {'' if 'type' in fields else 'type: local'}\n    {fields}\n")
    with pytest.raises((ConfigError, DiscoveryError), match=message) as caught:
        executor("x", find_workspace(tmp_path))
    assert f"{tmp_path / 'nemorun.yaml'}: executors.x" in str(caught.value)


def test_executors_can_come_from_python(tmp_path: Path) -> None:
    (tmp_path / "places.py").write_text(
        "import nemorun as run\n\n"
        "def big(nodes=2):\n    return run.LocalExecutor(nodes=nodes, env_vars={'A': '1'})\n\n"
        "def config():\n    return run.Config(run.LocalExecutor, nodes=3)\n\n"
        "def wrong():\n    return 7\n"
    )
    settings(
        tmp_path,
        "executors: {big: {factory: 'places.py:big', nodes: 4}, config: {factory: 'places.py:config'}, "
        "wrong: {factory: 'places.py:wrong'}}",
    )
    found = find_workspace(tmp_path)
    assert executor("big", found) == LocalExecutor(nodes=4, env_vars={"A": "1"})
    assert executor("config", found) == LocalExecutor(nodes=3)
    with pytest.raises(ConfigError, match="must return an executor"):
        executor("wrong", found)


def test_an_executor_goes_into_a_config_and_comes_back() -> None:
    one = LocalExecutor(nodes=2, env_vars={"A": "1"}, time="1:00")
    config = as_config(one)
    assert set(config.__arguments__) == {"nodes", "env_vars", "time"}
    assert config.build() == one


def test_a_user_without_a_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "NEMORUN_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("pwd.getpwuid", Mock(side_effect=KeyError))
    with pytest.raises(ConfigError, match="set HOME"):
        home()


def test_a_folder_that_was_deleted_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ConfigError, match="was deleted; cd to"):
        find_workspace()
