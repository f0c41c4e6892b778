"""A folder to launch from, with tasks in it."""

import textwrap
from pathlib import Path
from types import ModuleType

import pytest

from nemorun.config import load_script

JOBS = """
    import json
    import os
    import random
    import sys
    import time
    from pathlib import Path


    def double(n: int = 21):
        print(f"doubling {n}")
        return 2 * n


    def note(word: str = "ran", file: str = "ran.txt"):
        with Path(file).open("a") as out:
            out.write(word + "\\n")


    def boom():
        note("boom")
        raise ValueError("the very reason")


    def boom_on_rank_1():
        print("here is rank", os.environ["RANK"])
        if os.environ["RANK"] == "1":
            while not Path("rank-0-has-printed").exists():
                time.sleep(0.01)
            raise ValueError("the very reason")
        Path("rank-0-has-printed").touch()
        time.sleep(600)


    def hang():
        print("hanging")
        note("hang")
        time.sleep(600)


    def environment(*names: str, prefix: str = "MY_"):
        return {k: v for k, v in os.environ.items() if k.startswith(prefix)}


    def draw():
        return random.random()


    def count():
        file = Path(os.environ["NEMORUN_RESULTS_DIR"], "count")
        file.write_text(str(int(file.read_text()) + 1 if file.exists() else 1))
        return int(file.read_text())
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with `jobs.py` in it."""
    here = tmp_path / "project"
    here.mkdir()
    (here / "jobs.py").write_text(textwrap.dedent(JOBS))
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def jobs(folder: Path) -> ModuleType:
    """The functions of `jobs.py`."""
    return load_script(folder / "jobs.py")
