"""What `shell`, `debug` and `attach` share: a task, checked and frozen as for a run, but not recorded."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nemorun.cli.completion import complete_executor, complete_override
from nemorun.errors import NemorunError

if TYPE_CHECKING:
    from nemorun.cli.task import Request
    from nemorun.executors.base import Executor, Rendered
    from nemorun.executors.interactive import Interactive

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="As in `nemorun run`.", autocompletion=complete_override),
]
Where = Annotated[
    str | None,
    typer.Option(
        "--executor",
        "-e",
        metavar="NAME",
        help="Where; see `nemorun executors`.",
        autocompletion=complete_executor,
    ),
]
Env = Annotated[
    list[str] | None, typer.Option(metavar="KEY=VALUE", help="A variable of the task's environment.")
]
Secret = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="A variable whose value is handed over, and stored nowhere."),
]


@dataclass(frozen=True)
class Sitting:
    """A task as its executor is to have it, for as long as a person sits there."""

    executor: Interactive
    rendered: Rendered
    secrets: dict[str, str]


@contextmanager
def sitting(request: Request, key: str) -> Iterator[Sitting]:
    """Check and freeze the request's task; its files lie in a folder of this machine meanwhile."""
    from nemorun.cli.task import assemble

    experiment = assemble(request, confirm=lambda count: None)
    with tempfile.TemporaryDirectory(prefix="nemorun-") as base:
        plan = experiment.plan(key, Path(base) / f"{experiment.name}-{key}")
        plan.warn()
        (submission,) = plan.submissions
        (task,) = submission.tasks
        executor = interactive(task.executor)
        folder = Path(task.spec.run_dir)
        folder.mkdir(parents=True)
        for name, text in {**task.scripts, **({"task.yaml": task.yaml} if task.yaml else {})}.items():
            (folder / name).write_text(text, encoding="utf-8")
        yield Sitting(executor, submission.rendered, submission.secrets)


def interactive(executor: Executor) -> Interactive:
    """The executor, if it can. Raises NemorunError."""
    from nemorun.executors.interactive import Interactive

    if isinstance(executor, Interactive):
        return executor
    if executor.type == "local":
        raise NemorunError(
            "the executor 'local' runs tasks on this machine: the shell that you are in is the place already "
            "(-e NAME chooses another one)"
        )
    raise NemorunError(f"an executor of type {executor.type!r} has no interactive sessions")


def session_key(verb: str, name: str) -> str:
    """What a session is found by again: the same for the same work in the same workspace."""
    from nemorun.workspace import find_workspace

    text = f"{verb} {name} {find_workspace().root}"
    return "i" + hashlib.sha256(text.encode()).hexdigest()[:7]
