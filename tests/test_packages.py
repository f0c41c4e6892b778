"""What is installed is what was meant, from a wheel, an sdist and a checkout, on every Python that is here.

Each install is tried from an empty folder: beside the repository's own `nemorun/`, a broken package works.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
SOURCES = ("pyproject.toml", "README.md", "nemorun", "executors", "recipes", "tests")
#: The oldest and the newest.
PYTHONS = ("3.10", "3.13")

#: Prints where nemorun came from, after importing what stands behind the two links and the data file.
LOOK = """
import importlib.resources, importlib.util
import nemorun, nemorun.executors.local, nemorun.recipes.tiny
assert importlib.resources.files("nemorun").joinpath("py.typed").is_file()
foreign = [name for name in ("executors", "recipes", "tests") if importlib.util.find_spec(name)]
assert not foreign, f"top-level names were installed: {foreign}"
print(nemorun.__file__)
"""


def sh(*argv: str | Path, cwd: Path, **env: str) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run(
        [str(part) for part in argv], cwd=cwd, env={**os.environ, **env}, text=True, capture_output=True
    )
    assert done.returncode == 0, f"{argv} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources alone: a build writes beside them and must not find what an earlier one left."""
    copy = tmp_path_factory.mktemp("checkout")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(ROOT / name, copy / name)
    return copy


def build(checkout: Path, kind: str, target: Path) -> Path:
    """The one file of `build_wheel` or `build_sdist`, built with the setuptools that is installed."""
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(target)!r})"
    sh(sys.executable, "-c", code, cwd=checkout)
    (built,) = target.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(checkout, "wheel", tmp_path_factory.mktemp("wheel"))


def test_wheel_from_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    site, outside = tmp_path / "site", tmp_path / "outside"
    outside.mkdir()
    sh(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel, cwd=outside)
    found = sh(sys.executable, "-c", LOOK, cwd=outside, PYTHONPATH=str(site))
    assert Path(found.strip()) == site / "nemorun" / "__init__.py"


def test_wheel_holds_every_module(wheel: Path) -> None:
    expected = {
        str(Path("nemorun", *prefix, path.relative_to(ROOT / folder)))
        for folder, prefix in (("nemorun", ()), ("executors", ("executors",)), ("recipes", ("recipes",)))
        for path in (ROOT / folder).rglob("*.py")
    }
    assert "nemorun/executors/base.py" in expected
    assert {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")} == expected


def test_sdist_builds_the_same_wheel(checkout: Path, wheel: Path, tmp_path: Path) -> None:
    for name in ("sdist", "unpacked", "wheel"):
        (tmp_path / name).mkdir()
    shutil.unpack_archive(build(checkout, "sdist", tmp_path / "sdist"), tmp_path / "unpacked")
    (source,) = (tmp_path / "unpacked").iterdir()
    again = build(source, "wheel", tmp_path / "wheel")
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())


def test_editable_install(checkout: Path, tmp_path: Path) -> None:
    site, outside = tmp_path / "site", tmp_path / "outside"
    outside.mkdir()
    install = ("install", "-q", "--no-deps", "--no-build-isolation", "--target", site, "--editable", checkout)
    sh(sys.executable, "-m", "pip", *install, cwd=outside)
    # Without site (-S), this interpreter's own editable install stays silent: only this one's .pth is read.
    look = f"import site; site.addsitedir({str(site)!r})\n{LOOK}"
    path = f"{site}{os.pathsep}{sysconfig.get_path('purelib')}"
    found = sh(sys.executable, "-S", "-c", look, cwd=outside, PYTHONPATH=path)
    assert Path(found.strip()) == checkout / "nemorun" / "__init__.py"


def interpreter(version: str) -> str | None:
    """A Python of this version (`3.12`) that starts, from PATH or pyenv's folder."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    places = [f"python{version}", *sorted(str(path) for path in pyenv.glob(f"{version}.*/bin/python"))]
    for place in places:
        if (path := shutil.which(place)) is None:
            continue
        check = f"import sys, ensurepip; assert '%d.%d' % sys.version_info[:2] == '{version}'"
        if subprocess.run([path, "-c", check], capture_output=True).returncode == 0:  # a pyenv shim may not
            return path
    return None


@pytest.mark.parametrize("version", PYTHONS)
def test_launcher_runs_without_torch_on(version: str, wheel: Path, tmp_path: Path) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    # This pip installs into it, uncompiled: half the time of a pip of its own.
    sh(python, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    binaries = tmp_path / "venv" / "bin"
    pip = (sys.executable, "-m", "pip", "--python", binaries / "python")
    constraints = ("--constraint", ROOT / "requirements.lock")
    sh(*pip, "install", "-q", "--no-compile", *constraints, wheel, cwd=tmp_path)
    assert subprocess.run([binaries / "python", "-c", "import torch"], capture_output=True).returncode == 1

    workspace = tmp_path / "workspace"
    workspace.mkdir()
    (workspace / "hello.py").write_text(
        "import platform\n\ndef hello(name: str = 'you') -> str:\n"
        "    print(f'hello {name} from {platform.python_version()}')\n    return name\n"
    )
    assert "Usage" in sh(binaries / "nemorun", "--help", cwd=workspace)
    output = sh(binaries / "nemorun", "run", "hello.py:hello", "name=world", cwd=workspace)
    assert f"hello world from {version}." in output
    assert "nemorun.worker" in sh(binaries / "nemorun", "run", "hello.py:hello", "--dry-run", cwd=workspace)
