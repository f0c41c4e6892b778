"""Suspends a recorded experiment's tasks, and lets them go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nemorun.errors import NemorunError
from nemorun.executors.suspending import Suspending
from nemorun.experiment.record import Record
from nemorun.job import JobRef, JobState


def suspend(record: Record, task: str | None = None) -> None:
    """Stop one task, or all that have not ended: resumable ones save their state. Raises NemorunError."""
    _do(record, task, "suspend", lambda executor: executor.suspend)


def resume(record: Record, task: str | None = None) -> None:
    """Let one task go on, or all that have not ended. Raises NemorunError."""
    _do(record, task, "resume", lambda executor: executor.resume)


def losing(record: Record, task: str | None = None) -> list[str]:
    """Names of those that run and, once suspended, will begin anew."""
    return [
        name
        for name in _meant(record, task)
        if record.statuses[name].state is JobState.RUNNING and not record.specs[name].resumable
    ]


def _do(
    record: Record,
    task: str | None,
    verb: str,
    act: Callable[[Suspending], Callable[[Sequence[JobRef]], None]],
) -> None:
    """All executors are looked at before the first is told anything."""
    orders = []
    for executor, names in record.by_place(_meant(record, task)):
        if not isinstance(executor, Suspending):
            tasks = ", ".join(f"'{name}'" for name in names)
            raise NemorunError(
                f"an executor of type '{executor.type}' cannot {verb} tasks, and {tasks} of {record.name} "
                f"({record.id}) ran there; 'kubernetes' can. `nemorun cancel` and later "
                "`nemorun rerun --resume` come to the same for tasks that save their state"
            )
        orders.append((act(executor), [record.ref(name) for name in names]))
    if not orders:
        what = f"task '{task}' of {record.name} ({record.id})" if task else f"{record.name} ({record.id})"
        state = record.statuses[task].state if task else record.state
        raise NemorunError(f"there is nothing to {verb}: {what} has ended, as {state.value}")
    for order, refs in orders:
        order(refs)
    record.refresh()


def _meant(record: Record, task: str | None) -> list[str]:
    only = record.check_task(task) if task else None
    return [name for name in record.unfinished() if only in (None, name)]
