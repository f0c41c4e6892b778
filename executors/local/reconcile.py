"""After a supervisor's death: kill what it left, and write down what became of its tasks."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from nemorun.executors.local import processes
from nemorun.executors.local.journal import Journal, read, try_lock
from nemorun.job import JobState, Reason


def reconcile(folder: Path) -> bool:
    """Bring the journal to its end if no one else will.

    Returns False where a supervisor, or another process that does this, is at work. What no journal tells
    of was never submitted, and now never will be. Does nothing, and returns True, for another machine's run:
    its processes cannot be seen from here. Raises OSError where the journal cannot be written.
    """
    lock = try_lock(folder)
    if lock is None:
        return False
    try:
        history = read(folder / "journal.jsonl")
        here = os.uname().nodename
        if history.abandoned or (history.supervisor and (not history.unfinished or history.host != here)):
            return True
        with contextlib.closing(Journal(folder / "journal.jsonl")) as journal:
            if history.supervisor is None:
                journal.append("abandoned", host=here)
            for name in history.unfinished:
                task = history.tasks[name]
                for rank in task.ranks:
                    if rank.identity:
                        processes.kill_leader(rank.pid, rank.identity)
                processes.kill_marked(task.token)
                journal.append(
                    "ended",
                    task=name,
                    state=JobState.FAILED,
                    reason=Reason.LOST,
                    message=f"its supervisor died before the task ended; {folder}/supervisor.log may say why",
                )
        return True
    finally:
        os.close(lock)
