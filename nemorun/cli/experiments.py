"""Looking at what was run, from any process: list, status, logs, cancel, diff."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nemorun.cli.completion import complete_experiment
from nemorun.cli.output import Json, as_json, confirm, duration, note, table, when
from nemorun.errors import DiscoveryError, NemorunError

if TYPE_CHECKING:
    from nemorun.experiment import Record
    from nemorun.job import JobStatus

ID_HELP = (
    "An experiment: its ID or the beginning of it, its name, or -1 for the last one, -2 for the one before."
)
Id = Annotated[str, typer.Argument(metavar="ID", help=ID_HELP, autocompletion=complete_experiment)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print exactly what would be submitted, and stop.")]
Detach = Annotated[
    bool, typer.Option("--detach/--follow", help="Return after submission, or follow the logs (default).")
]


def list_(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, metavar="N", help="How many at most.")] = 20,
    json: Json = False,
) -> None:
    """List experiments, the newest first."""
    from nemorun.experiment import records

    found = records(limit)
    if json:
        as_json([as_data(record) for record in found])
        return
    if not found:
        note("There are no experiments yet; `nemorun recipes` lists what can be run")
    table(
        ("", "id", "name", "state", "tasks", "created"),
        [
            (
                f"-{number}",
                record.id,
                record.name,
                record.state.value,
                _progress(record),
                when(record.created_at),
            )
            for number, record in enumerate(found, start=1)
        ],
    )


def status(experiment: Id = "-1", json: Json = False) -> None:
    """Show how an experiment's tasks stand."""
    record = find(experiment)
    record.refresh()
    if json:
        as_json(as_data(record))
        return
    print(f"{record.name} ({record.id}): {record.state.value}, created {when(record.created_at)}")
    print(record.folder)
    folders = (_remote_dir(record, name) for name in record.statuses)
    for folder in dict.fromkeys(one.rpartition("/tasks/")[0] for one in folders if one):
        print(f"there: {folder}")
    table(
        ("task", "job", "state", "time", "attempt", "reason"),
        [
            (
                name,
                "" if record.kinds[name] == "local" else record.ref(name).handle or "",
                status.state.value,
                duration(_elapsed(status)),
                str(status.attempt or ""),
                ": ".join(filter(None, dict.fromkeys((status.reason.value, status.message)))),
            )
            for name, status in record.statuses.items()
        ],
    )


def logs(
    experiment: Id,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the experiment ends.")] = False,
    task: Annotated[str | None, typer.Option(metavar="NAME", help="One task only.")] = None,
    rank: Annotated[int | None, typer.Option(min=0, metavar="N", help="One rank only.")] = None,
) -> None:
    """Print what an experiment's tasks have written."""
    from nemorun.experiment.follow import print_logs

    record = find(experiment)
    names = list(record.statuses) if task is None else [record.check_task(task)]
    ranks = max(record.specs[name].resources.world_size for name in names)
    if rank is not None and rank >= ranks:
        known = f"ranks 0 to {ranks - 1}" if ranks > 1 else "rank 0 only"
        raise NemorunError(f"--rank {rank}: {record.name} ({record.id}) has {known}")
    print_logs(record, task, rank, follow)


def cancel(
    experiment: Id,
    task: Annotated[str | None, typer.Option(metavar="NAME", help="One task only.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Cancel an experiment's tasks."""
    record = find(experiment)
    record.refresh()
    state = record.state if task is None else record.statuses[record.check_task(task)].state
    what = f"{record.name} ({record.id})" if task is None else f"task '{task}' of {record.name} ({record.id})"
    if state.ended:
        note(f"{what} had ended already: {state.value}")
        return
    confirm(f"Cancel {what}?", yes)
    record.cancel(task)
    state = record.state if task is None else record.statuses[task].state
    # an executor may have taken the order over, and its ranks still be ending
    note(f"{what}: {state.value}" if state.ended else f"{what} is being cancelled; it is still {state.value}")


def diff(left: Id, right: Id, json: Json = False) -> None:
    """Show what differs between two experiments."""
    from nemorun.experiment import diff as difference

    rows = difference(left, right)
    if json:
        as_json([row._asdict() for row in rows])
        return
    if not rows:
        note("no difference")
        return
    table(("", left, right), [(row.path, _side(row.left), _side(row.right)) for row in rows])


def _side(value: str | None) -> str:
    return "(absent)" if value is None else value


def find(text: str) -> Record:
    """The experiment that this text names. Raises DiscoveryError with the candidates."""
    from nemorun.experiment import Record

    return Record.find(text)


def as_data(record: Record) -> dict[str, Any]:
    """The JSON of an experiment; its keys are documented and stay."""
    return {
        "id": record.id,
        "name": record.name,
        "state": record.state.value,
        "created_at": record.created_at,
        "folder": str(record.folder),
        "tasks": [
            {
                "name": name,
                "state": status.state.value,
                "reason": status.reason.value,
                "message": status.message,
                "exit_code": status.exit_code,
                "attempt": status.attempt,
                "started_at": status.started_at,
                "ended_at": status.ended_at,
                "run_dir": str(record.run_dirs[name]),
                "remote_dir": _remote_dir(record, name),
                "executor": record.kinds[name],
                "handle": record.ref(name).handle,
            }
            for name, status in record.statuses.items()
        ],
    }


def _remote_dir(record: Record, task: str) -> str | None:
    """Where an executor of another machine has the task's folder, results included."""
    if record.kinds[task] == "local":  # nothing is read and built for what is not there
        return None
    try:
        return record.executor(task).remote_dir(record.ref(task))
    except DiscoveryError:  # a part of the record was deleted: its state can be shown all the same
        return None


def _progress(record: Record) -> str:
    done = sum(status.state.ended for status in record.statuses.values())
    return f"{done}/{len(record.statuses)}"


def _elapsed(status: JobStatus) -> float | None:
    return None if status.started_at is None else (status.ended_at or time.time()) - status.started_at
