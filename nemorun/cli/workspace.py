"""`nemorun init`: a commented start of a workspace that runs as it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SETTINGS = """\
# The settings of this workspace. nemorun finds this file from here and from every folder below.
# Your own settings, for all workspaces, may stand in ~/.config/nemorun/nemorun.yaml, in the same form.

# Executors by name. `local` is always there. Choose one with `nemorun run example -e two_ranks`,
# change a field for one run with `executor.time=1:00:00`, and see them all with `nemorun executors`.
executors:
  two_ranks:
    type: local
    ntasks_per_node: 2
    time: "10:00"

# Used where no -e is given.
default_executor: local

# What is frozen with every run: git's files (a .gitignore and a .nemorunignore are respected).
code:
  exclude: ["data/", "*.ckpt"]
  max_size: 50MB
  uncommitted: include    # or: refuse
"""

RECIPE = '''\
"""An example. Every function here that is marked with `@run.cli.factory` is a recipe of this workspace.

    nemorun run example                          run it
    nemorun run example walk.steps=50 seed=7     change what it does
    nemorun run example --sweep seed=1,2,3       several at once
    nemorun show example                         see all that can be changed
"""

import random
from dataclasses import dataclass

import nemorun as run


@dataclass
class Walk:
    """How to walk."""

    steps: int = 10
    """How many steps are taken."""
    size: float = 1.0
    """How long one step is."""


def random_walk(walk: Walk, seed: int = 0) -> float:
    """Walk along a line from 0, and return where that ends.

    Args:
        walk: how to walk
        seed: the same seed walks the same way
    """
    dice = random.Random(seed)
    position = 0.0
    for step in range(walk.steps):
        position += dice.choice((-walk.size, walk.size))
        print(f"step {step + 1}: at {position:+.1f}")
    return position


@run.cli.factory
def example(steps: int = 10):
    """Take a random walk, to see that everything works."""
    return run.Partial(random_walk, walk=run.Config(Walk, steps=steps))
'''

FILES = {"nemorun.yaml": SETTINGS, "recipes/example.py": RECIPE}


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder; made where there is none.")
    ] = Path(),
) -> None:
    """Write a commented start of a workspace.

    Writes nemorun.yaml and recipes/example.py. A file that is there already is left as it is.
    """
    for name, text in FILES.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x") as file:
                file.write(text)
        except FileExistsError:
            if not path.is_file():
                raise _refused(path, "something else stands there") from None
            print(f"kept {path}, which was there already")
        except OSError as error:
            raise _refused(path, error.strerror or str(error)) from error
        else:
            print(f"wrote {path}")
    there = "" if folder.resolve() == Path.cwd() else f"cd {_quoted(folder)} && "
    print(f"Now try: {there}nemorun run example")


def _quoted(folder: Path) -> str:
    import shlex

    return shlex.quote(str(folder))


def _refused(path: Path, why: str) -> Exception:
    from nemorun.errors import NemorunError

    return NemorunError(f"'{path}' cannot be written: {why}; choose another folder, as in `nemorun init DIR`")
