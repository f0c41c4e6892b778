"""What became of a job: from its journal, squeue's row and sacct's rows to one status. Pure.

The journal, which the job itself writes, says how it ended; Slurm says what goes on, and how a job ended that
could not write. A job that nobody knows is UNKNOWN: it never counts as succeeded or failed.
"""

from __future__ import annotations

import time
from dataclasses import replace

from nemorun.executors.slurm.endings import (
    as_a_shell_says,
    cancelled_by,
    details,
    failed_dependency,
    first_failure,
)
from nemorun.executors.slurm.evidence import Event, Evidence
from nemorun.executors.slurm.parse import Row
from nemorun.executors.slurm.reasons import why_pending
from nemorun.job import JobState, JobStatus, Reason

#: Seconds in which the journal's last line reaches the login node, over a shared file system that caches.
JOURNAL_LAG = 20.0
#: Seconds after which a job that left no trace on the cluster was surely not submitted.
SUBMISSION_LAG = 120.0

#: squeue's states of jobs that go on.
WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
RUNNING = {
    "RUNNING",
    "CONFIGURING",
    "COMPLETING",
    "SUSPENDED",
    "STOPPED",
    "RESIZING",
    "SIGNALING",
    "STAGE_OUT",
}

#: The journal's word of an end, and Slurm's state of a job that could not write it.
_ENDS = {
    "succeeded": (JobState.SUCCEEDED, Reason.NONE),
    "failed": (JobState.FAILED, Reason.EXIT_CODE),
    "time-limit": (JobState.FAILED, Reason.TIMEOUT),
    "preempted": (JobState.FAILED, Reason.PREEMPTED),
    "requeued": (JobState.FAILED, Reason.REQUEUED),
    "out-of-memory": (JobState.FAILED, Reason.OUT_OF_MEMORY),
    "node-failure": (JobState.FAILED, Reason.NODE_FAILURE),
    "cancelled": (JobState.CANCELLED, Reason.CANCELLED),
    "unknown": (JobState.FAILED, Reason.REQUEUED),
}
_SLURM_ENDS = {
    "COMPLETED": "succeeded",
    "FAILED": "failed",
    "TIMEOUT": "time-limit",
    "DEADLINE": "time-limit",
    "PREEMPTED": "preempted",
    "OUT_OF_MEMORY": "out-of-memory",
    "NODE_FAIL": "node-failure",
    "BOOT_FAIL": "node-failure",
    "CANCELLED": "cancelled",
    "REVOKED": "cancelled",
}
#: Ends that a job can write down itself: the journal has the first word for a while.
_WRITTEN = {"COMPLETED", "FAILED"}


def status(seen: Evidence) -> JobStatus:
    """The table. The first line that applies is the answer."""
    ended = next((event for event in reversed(seen.journal) if event.kind == "ended"), None)
    row = _brought_up_to_date(seen)
    last = seen.accounted[-1] if seen.accounted else None
    if ended:
        return _ended_by_journal(seen, ended)
    if seen.silent:
        return _now(seen, JobState.UNKNOWN, message=seen.silent)
    if row and row.reason == "DependencyNeverSatisfied":
        return _now(
            seen, JobState.FAILED, Reason.DEPENDENCY_FAILED, failed_dependency(row), ended_at=seen.now
        )
    if row and row.state in WAITING:
        return _pending(seen, row)
    if row and row.state in RUNNING:
        return _running(seen, row)
    over = last if last and last.state in _SLURM_ENDS else row
    if over and over.state in _SLURM_ENDS:
        return _ended_by_slurm(seen, over, row)
    # from here on accounting is some seconds behind the queue
    if last and last.state in WAITING:
        if not seen.cancel_ordered:
            return _pending(seen, last)
    elif last:
        return _now(
            seen, JobState.UNKNOWN, message=f"Slurm's queue has no job {seen.job}; sacct says {last.state}"
        )
    if seen.unaccounted:
        return _now(seen, JobState.UNKNOWN, message=seen.unaccounted)
    if seen.job and seen.cancel_ordered:
        # of an array's element that waits Slurm keeps no record then; without accounting, of no job
        words = "it left no word of its end" if seen.journal else "before it began"
        return _now(seen, JobState.CANCELLED, Reason.CANCELLED, words, ended_at=seen.now)
    if seen.job or seen.journal:
        return _now(seen, JobState.UNKNOWN, message=_forgotten(seen))
    if seen.submitting or (seen.fresh and not seen.cancel_ordered):
        return _now(seen, JobState.PENDING, message="it is being submitted")
    if seen.cancel_ordered:
        return _now(seen, JobState.CANCELLED, Reason.CANCELLED, "before it was submitted", ended_at=seen.now)
    where = (
        "its submission ended before sbatch was called" if seen.arrived else "it never reached the cluster"
    )
    return _now(seen, JobState.FAILED, Reason.NOT_SUBMITTED, f"{where}; submit it anew")


def _brought_up_to_date(seen: Evidence) -> Row | None:
    """squeue's row; the journal may know since then that it has begun, or that it waits again."""
    row, last = seen.queued, seen.journal[-1] if seen.journal else None
    if row is None or last is None or last.at < seen.asked_at:
        return row
    if last.kind == "began":
        return replace(
            row, state="RUNNING", start=last.at, nodes=last.words[1] if last.words[1:] else row.nodes
        )
    return replace(row, state="PENDING", reason="", start=None) if last.kind == "requeued" else row


def _now(
    seen: Evidence,
    state: JobState,
    reason: Reason = Reason.NONE,
    message: str = "",
    *,
    code: int | None = None,
    started_at: float | None = None,
    ended_at: float | None = None,
) -> JobStatus:
    """A status with what the journal tells of attempts."""
    attempt = max((event.attempt for event in seen.journal if event.kind == "began"), default=0)
    began = next((event.at for event in seen.journal if event.kind == "began"), started_at)
    return JobStatus(state, reason, message, code, attempt, began, ended_at)


def _pending(seen: Evidence, row: Row) -> JobStatus:
    reason, words = why_pending(row)
    parts = [words]
    if before := _before(seen.journal):
        if row.reason in ("BeginTime", ""):  # Slurm lets everything that is started again wait for a while
            reason, parts = Reason.BACKOFF, []
        parts = [before, *parts]
    if row.start and row.start >= seen.now + 60:
        parts.append(f"starts about {_clock(row.start, seen.now)}")
    words = "; ".join(filter(None, parts))
    return _now(seen, JobState.PENDING, reason, words)


def _running(seen: Evidence, row: Row) -> JobStatus:
    words = f"on {row.nodes}" if row.nodes else ""
    if row.state == "CONFIGURING":
        words = f"its nodes are being made ready: {row.nodes}"
    elif row.state in ("SUSPENDED", "STOPPED"):
        words = f"suspended on {row.nodes}"
    elif row.state == "COMPLETING":
        words = f"ending on {row.nodes}"
    return _now(seen, JobState.RUNNING, message=words, started_at=row.start)


def _before(journal: list[Event]) -> str:
    """Why it waits again, after it ran."""
    if not journal:
        return ""
    last = journal[-1]
    if last.kind in ("requeued", "lost") and last.words:
        why, code = last.words[0], last.words[1] if len(last.words) > 1 else ""
        how = {
            "preempted": "was preempted",
            "requeued": "was requeued",
            "time-limit": "reached its time limit",
            "failed": f"ended with {code}",
            "node-failure": "lost a node",
            "out-of-memory": "ran out of memory",
            "unknown": "was interrupted",
        }.get(why, f"ended ({why})")
        return f"attempt {last.attempt} {how}"
    return f"attempt {last.attempt} was interrupted" if last.kind == "began" else ""


def _ended_by_journal(seen: Evidence, event: Event) -> JobStatus:
    word = event.words[0] if event.words else ""
    state, reason = _ENDS.get(word, (JobState.FAILED, Reason.EXIT_CODE))
    code = int(event.words[1]) if len(event.words) > 1 and event.words[1].isdigit() else None
    words = ""
    if word == "failed":
        reason, words = first_failure(seen, code)
        code = as_a_shell_says(code, reason)
    elif word == "cancelled":
        words = cancelled_by(seen)
    elif state is JobState.FAILED:
        words = details(seen, word)
    shown = None if state is JobState.CANCELLED else code
    return _now(seen, state, reason, words, code=shown, ended_at=event.at)


def _ended_by_slurm(seen: Evidence, row: Row, queued: Row | None) -> JobStatus:
    """It ended, and its journal does not say how."""
    if row.state in _WRITTEN and seen.now < (row.end or 0) + JOURNAL_LAG:
        return _now(
            seen, JobState.RUNNING, message="it has ended; how is not known yet", started_at=row.start
        )
    word = _SLURM_ENDS[row.state]
    if "OUT_OF_MEMORY" in row.steps and word == "failed":  # older versions tell it of the step alone
        word = "out-of-memory"
    state, reason = _ENDS[word]
    code = 128 + row.signal if row.signal and not row.code else row.code
    words = ""
    if word == "failed":
        code = code or None  # sacct's JSON of 22.05 says 0 of all
        reason, words = first_failure(seen, code)
        code = as_a_shell_says(code, reason)
    elif word == "cancelled":
        code = None
        if row.reason == "Dependency" and not row.by:  # by --kill-on-invalid-dep
            state, reason = JobState.FAILED, Reason.DEPENDENCY_FAILED
            words = failed_dependency(queued or row)
        else:
            words = cancelled_by(seen)
    elif state is JobState.FAILED:
        code, words = None, details(seen, word, row)
    started_at = row.start if row.nodes else None  # Slurm says its end of what never began
    return _now(seen, state, reason, words, code=code, started_at=started_at, ended_at=row.end or seen.now)


def _forgotten(seen: Evidence) -> str:
    job = seen.job or "of its name"
    if seen.journal and seen.journal[-1].kind == "began":
        what = f"it began, but Slurm knows no job {job} any more, and it left no word of its end"
        return f"{what}; `nemorun cancel` settles it"
    by_hand = "; if it was cancelled by hand, `nemorun cancel` settles it" if "_" in job else ""
    return f"Slurm knows no job {job}: neither squeue nor sacct shows it{by_hand}"


def _clock(at: float, now: float) -> str:
    """The time of day, here; with the day, unless it is today."""
    there = time.localtime(at)
    today = time.localtime(now)[:3] == there[:3]
    return time.strftime("%H:%M" if today else "%a %d %b %H:%M", there)
