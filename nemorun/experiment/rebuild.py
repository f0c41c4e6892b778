"""What the experiments' own folders say of them: an index that was lost is made of it anew."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import yaml

from nemorun.experiment.record import CREATED_FORMAT
from nemorun.experiment.store import Entry, TaskEntry

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def recorded(folder: Path) -> list[Entry]:
    """The experiments that stand in `folder`, the oldest first. How they stand, their executors know."""
    found = []
    for file in folder.glob("[!.]*/experiment.yaml"):
        try:
            found.append(_entry(file))
        except (OSError, yaml.YAMLError, LookupError, TypeError, ValueError):
            continue  # damaged, or not ours
    return sorted(found, key=lambda entry: entry.created_at)


def _entry(file: Path) -> Entry:
    try:
        facts = yaml.load(file.read_bytes(), Loader=_LOADER)
    except yaml.YAMLError:  # the fast one refuses what stands for bytes that are no UTF-8, in names of files
        facts = yaml.safe_load(file.read_bytes())
    run_dirs = {job.parent.name: job.parent for job in file.parent.glob("**/tasks/*/job.json")}
    tasks = (TaskEntry(task["name"], run_dirs[task["name"]], task["executor"]) for task in facts["tasks"])
    created = datetime.strptime(facts["created"], CREATED_FORMAT).timestamp()
    return Entry(facts["id"], facts["name"], file.parent, created, tuple(tasks))
