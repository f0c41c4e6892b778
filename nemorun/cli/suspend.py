"""`nemorun suspend` and `nemorun resume`: stop tasks for a while, where the executor can."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from nemorun.cli.experiments import Id, find
from nemorun.cli.output import confirm, note

if TYPE_CHECKING:
    from nemorun.experiment import Record

Task = Annotated[str | None, typer.Option(metavar="NAME", help="One task only.")]


def suspend(
    experiment: Id,
    task: Task = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Stop an experiment's tasks until `resume`.

    Tasks that can save their state do, and go on there; others begin anew. Their resources are given back.
    """
    from nemorun.experiment import suspending

    record = find(experiment)
    record.refresh()
    if lost := suspending.losing(record, task):
        tasks = ", ".join(f"'{name}'" for name in lost)
        verb = "does not save its state and begins" if len(lost) == 1 else "do not save their state and begin"
        confirm(f"{tasks} of {record.name} ({record.id}) {verb} anew when resumed. Suspend?", yes)
    suspending.suspend(record, task)
    _tell(record, task)


def resume(experiment: Id, task: Task = None) -> None:
    """Let an experiment's suspended tasks go on."""
    from nemorun.experiment import suspending

    record = find(experiment)
    record.refresh()
    suspending.resume(record, task)
    _tell(record, task)


def _tell(record: Record, task: str | None) -> None:
    from nemorun.experiment.record import describe

    for name in [task] if task else record.statuses:
        note(f"task '{name}' of {record.name} ({record.id}) is {describe(record.statuses[name])}")
