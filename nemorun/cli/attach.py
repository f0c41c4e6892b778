"""`nemorun attach`: a shell beside a rank of a running task."""

from __future__ import annotations

from typing import Annotated

import typer

from nemorun.cli.experiments import Id
from nemorun.errors import NemorunError


def attach(
    experiment: Id,
    task: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which task, where there are several.")
    ] = None,
    rank: Annotated[int, typer.Option(min=0, metavar="N", help="Beside which rank.")] = 0,
) -> int:
    """Open a shell beside a running task.

    It has the task's environment, and ends with the task.
    """
    from nemorun.cli.experiments import find
    from nemorun.cli.interactive import interactive
    from nemorun.experiment.record import describe
    from nemorun.job import JobState

    record = find(experiment)
    if task is None and len(record.statuses) > 1:
        raise NemorunError(
            f"{record.name} ({record.id}) has several tasks: --task {' | '.join(record.statuses)}"
        )
    name = record.check_task(task or next(iter(record.statuses)))
    spec = record.specs[name]
    if rank >= spec.resources.world_size:
        raise NemorunError(f"--rank {rank}: task '{name}' has ranks 0 to {spec.resources.world_size - 1}")
    executor = interactive(record.executor(name))
    record.refresh()
    status = record.statuses[name]
    if status.state is not JobState.RUNNING:
        whose = f"task '{name}' of {record.name} ({record.id})"
        raise NemorunError(f"there is nothing to attach to: {whose} is {describe(status)}")
    return executor.attach(record.ref(name), spec, rank)
