"""From what is known of a job to its status: the table, line by line."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from nemorun.executors.slurm.evidence import Evidence, events
from nemorun.executors.slurm.parse import Row
from nemorun.executors.slurm.reasons import why_pending
from nemorun.executors.slurm.states import JOURNAL_LAG, status
from nemorun.job import JobState, JobStatus, Reason

NOW = 1_795_470_000.0
BEGAN = "1795469900 began 1 7 node001,node002"


def row(state: str, reason: str = "", **fields: Any) -> Row:
    return replace(Row("7", "7", "train.k3x9q2", state, reason, partition="batch", qos="normal"), **fields)


def seen(*journal: str, **fields: Any) -> JobStatus:
    known = {"now": NOW, "asked_at": NOW, "job": "7", "arrived": True, **fields}
    return status(Evidence(journal=events(journal), **known))


def ended(words: str) -> str:
    return f"1795469950 ended 1 {words}"


@pytest.mark.parametrize(
    ("words", "state", "reason", "code"),
    [
        ("succeeded 0", JobState.SUCCEEDED, Reason.NONE, 0),
        ("failed 3", JobState.FAILED, Reason.EXIT_CODE, 3),
        ("failed 139", JobState.FAILED, Reason.SIGNAL, 139),
        ("time-limit 143", JobState.FAILED, Reason.TIMEOUT, 143),
        ("preempted 75", JobState.FAILED, Reason.PREEMPTED, 75),
        ("requeued 75", JobState.FAILED, Reason.REQUEUED, 75),
        ("out-of-memory 137", JobState.FAILED, Reason.OUT_OF_MEMORY, 137),
        ("cancelled 143", JobState.CANCELLED, Reason.CANCELLED, None),
    ],
)
def test_the_journals_end_wins(words: str, state: JobState, reason: Reason, code: int | None) -> None:
    for queued in (None, row("RUNNING"), row("COMPLETING"), row("CANCELLED")):
        found = seen(BEGAN, ended(words), queued=queued, silent="refused")
        assert (found.state, found.reason, found.exit_code) == (state, reason, code)
        assert (found.attempt, found.started_at, found.ended_at) == (1, 1795469900, 1795469950)


def test_the_first_failed_rank_is_named() -> None:
    note = '12 {"time": 1.5, "type": "ValueError", "error": "ValueError: no such file"}'
    assert seen(BEGAN, ended("failed 1"), failure=note).message == "rank 12: ValueError: no such file"
    said = [
        "srun: error: node001: task 3: Exited with exit code 5",  # of this one, srun ended all others
        "srun: error: node002: tasks 4-7: Terminated",
        "srun: error: node001: tasks 0-2: Killed",
    ]
    found = seen(BEGAN, ended("failed 5"), failure='0 {"error', said=said)
    assert (found.message, found.reason) == ("rank 3 on node001 ended with 5", Reason.EXIT_CODE)
    said = ["srun: error: node001: task 1: Segmentation fault"]
    found = seen(BEGAN, ended("failed 11"), said=said)
    assert (found.message, found.reason, found.exit_code) == (
        "rank 1 on node001: Segmentation fault",
        Reason.SIGNAL,
        139,
    )
    assert seen(ended("failed 127")).message == "its batch script ended with 127"
    assert seen(ended("failed 143")).message == "its batch script ended with 143 (SIGTERM)"
    refused = seen(ended("failed 255"))  # an option that srun does not know: nobody sent a signal
    assert (refused.reason, refused.exit_code) == (Reason.EXIT_CODE, 255)


def test_an_element_that_was_cancelled_while_it_waited_has_ended() -> None:
    """Slurm forgets it at once, queue and accounting alike."""
    found = seen(job="7_3", cancel_ordered=True)
    assert (found.state, found.message, found.ended_at) == (JobState.CANCELLED, "before it began", NOW)
    assert "`nemorun cancel`" in seen(job="7_3").message
    began = seen(BEGAN, job="7_3", cancel_ordered=True)
    assert (began.state, began.message) == (JobState.CANCELLED, "it left no word of its end")
    assert seen(job="7_3", cancel_ordered=True, unaccounted="refused").state is JobState.UNKNOWN
    behind = seen(job="7_3", cancel_ordered=True, accounted=[row("PENDING")])  # accounting is
    assert (behind.state, behind.message) == (JobState.CANCELLED, "before it began")
    assert seen(job="7_3", accounted=[row("PENDING")]).state is JobState.PENDING


def test_what_never_began_has_not_started() -> None:
    told = {"start": NOW - 1, "end": NOW - 1}
    assert seen(accounted=[row("CANCELLED", by="0", **told)]).started_at is None
    assert seen(accounted=[row("CANCELLED", by="0", nodes="node001", **told)]).started_at == NOW - 1


def test_what_was_requeued_and_held_says_how_it_goes_on() -> None:
    found = seen(BEGAN, queued=row("PENDING", "job requeued in held state"))
    assert found.reason is Reason.HELD
    assert found.message == "attempt 1 was interrupted; `scontrol release 7` lets it go"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("RUNNING", "on node001"),
        ("CONFIGURING", "its nodes are being made ready: node001"),
        ("COMPLETING", "ending on node001"),
        ("SUSPENDED", "suspended on node001"),
    ],
)
def test_squeue_says_what_goes_on(state: str, words: str) -> None:
    found = seen(queued=row(state, nodes="node001", start=NOW - 5))
    assert (found.state, found.message, found.started_at) == (JobState.RUNNING, words, NOW - 5)


def test_what_the_journal_says_later_is_newer() -> None:
    waiting = row("PENDING", "Priority")
    found = seen(BEGAN, queued=waiting, asked_at=NOW - 200)
    assert (found.state, found.message) == (JobState.RUNNING, "on node001,node002")
    same = seen(BEGAN, queued=waiting, asked_at=1795469900)  # seconds are all that a journal knows
    assert same.state is JobState.RUNNING
    requeued = "1795469950 requeued 1 time-limit 75"
    assert seen(BEGAN, requeued, queued=row("RUNNING"), asked_at=NOW - 200).state == JobState.PENDING
    assert seen(BEGAN, requeued, queued=row("RUNNING"), asked_at=NOW).state == JobState.RUNNING


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("1795469950 requeued 1 preempted 75", "attempt 1 was preempted"),
        ("1795469950 requeued 1 requeued 75", "attempt 1 was requeued"),
        ("1795469950 lost 1 requeued -", "attempt 1 was requeued"),
        ("1795469950 requeued 1 time-limit 75", "attempt 1 reached its time limit"),
        ("1795469950 requeued 1 failed 3", "attempt 1 ended with 3"),
        ("1795469950 requeued 1 node-failure 1", "attempt 1 lost a node"),
        (BEGAN, "attempt 1 was interrupted"),
    ],
)
def test_what_waits_again_says_why(line: str, words: str) -> None:
    found = seen(BEGAN, line, queued=row("PENDING", "BeginTime"))
    assert (found.state, found.reason, found.attempt) == (JobState.PENDING, Reason.BACKOFF, 1)
    assert found.message == words


def test_the_expected_start_is_told() -> None:
    at = NOW + 2 * 86400
    found = seen(queued=row("PENDING", "Priority", start=at))
    day = time.strftime("%a %d %b %H:%M", time.localtime(at))
    assert found.message == f"jobs of higher priority stand before it; starts about {day}"
    today = seen(queued=row("PENDING", "Priority", start=NOW + 60)).message
    assert today.endswith(time.strftime("starts about %H:%M", time.localtime(NOW + 60)))
    assert "starts" not in seen(queued=row("PENDING", "Priority", start=NOW + 1)).message


def test_a_job_that_was_just_submitted_needs_no_words() -> None:
    assert seen(queued=row("PENDING")).message == ""
    assert seen(queued=row("PENDING", start=NOW + 60)).message.startswith("starts about")


@pytest.mark.parametrize(
    ("state", "fields", "expected", "reason", "words"),
    [
        ("CANCELLED", {"by": "3001"}, JobState.CANCELLED, Reason.CANCELLED, "by bob"),
        ("CANCELLED", {}, JobState.CANCELLED, Reason.CANCELLED, ""),
        (
            "TIMEOUT",
            {"limit": "5:00"},
            JobState.FAILED,
            Reason.TIMEOUT,
            "5:00; ask for more with time",
        ),
        ("PREEMPTED", {}, JobState.FAILED, Reason.PREEMPTED, ""),
        ("OUT_OF_MEMORY", {}, JobState.FAILED, Reason.OUT_OF_MEMORY, "ask for more with mem"),
        ("NODE_FAIL", {"failed_node": "node003"}, JobState.FAILED, Reason.NODE_FAILURE, "node003"),
        ("NODE_FAIL", {"nodes": "node[1-2]"}, JobState.FAILED, Reason.NODE_FAILURE, "one of node[1-2]"),
        ("DEADLINE", {}, JobState.FAILED, Reason.TIMEOUT, "ask for more with time"),
    ],
)
def test_slurm_tells_an_end_that_the_job_could_not(
    state: str, fields: dict[str, Any], expected: JobState, reason: Reason, words: str
) -> None:
    found = seen(BEGAN, accounted=[row(state, end=NOW - 1, **fields)], users={"3001": "bob"})
    assert (found.state, found.reason, found.message) == (expected, reason, words)
    assert found.ended_at == NOW - 1


def test_a_cancel_of_ours_needs_no_name() -> None:
    assert seen(accounted=[row("CANCELLED", by="3001")], cancel_ordered=True).message == ""


def test_the_journal_has_a_while_to_arrive() -> None:
    for state in ("COMPLETED", "FAILED"):
        assert seen(BEGAN, queued=row(state, end=NOW - 1)).state == JobState.RUNNING
    late = NOW - JOURNAL_LAG - 1
    assert seen(BEGAN, accounted=[row("COMPLETED", end=late, code=0)]).state == JobState.SUCCEEDED
    found = seen(BEGAN, accounted=[row("FAILED", end=late, code=2)])
    assert (found.state, found.exit_code) == (JobState.FAILED, 2)
    found = seen(BEGAN, accounted=[row("FAILED", end=late, code=1, steps=("FAILED", "OUT_OF_MEMORY"))])
    assert found.reason == Reason.OUT_OF_MEMORY
    assert seen(BEGAN, accounted=[row("FAILED", end=late, code=0)]).exit_code is None


def test_accounting_may_be_behind() -> None:
    found = seen(accounted=[row("RUNNING")])
    assert (found.state, found.message) == (
        JobState.UNKNOWN,
        "Slurm's queue has no job 7; sacct says RUNNING",
    )
    assert seen(accounted=[row("NODE_FAIL"), row("PENDING", "BeginTime")]).state == JobState.PENDING
    requeued = [row("NODE_FAIL"), row("REQUEUED")]
    assert seen(BEGAN, accounted=requeued).state == JobState.PENDING
    assert seen(BEGAN, queued=row("RUNNING"), accounted=[row("NODE_FAIL")]).state == JobState.RUNNING


def test_a_dependency_that_failed() -> None:
    waits = row(
        "PENDING", "DependencyNeverSatisfied", dependency="afterok:11(failed),afterok:12(unfulfilled)"
    )
    for told in (
        {"queued": waits},
        {"queued": replace(waits, state="CANCELLED")},
        {"queued": replace(waits, state="CANCELLED"), "accounted": [row("CANCELLED", "Dependency")]},
    ):
        found = seen(**told)
        assert (found.state, found.reason, found.message) == (
            JobState.FAILED,
            Reason.DEPENDENCY_FAILED,
            "job 11 did not succeed",
        )
    found = seen(accounted=[row("CANCELLED", "Dependency", by="0")])
    assert (found.state, found.message) == (JobState.CANCELLED, "by 0")


def test_what_nobody_knows_is_unknown() -> None:
    found = seen()
    assert (found.state, found.message) == (
        JobState.UNKNOWN,
        "Slurm knows no job 7: neither squeue nor sacct shows it",
    )
    found = seen(BEGAN)
    assert (found.state, found.attempt) == (JobState.UNKNOWN, 1)
    assert "left no word of its end" in found.message
    found = seen(silent="squeue does not answer: refused", queued=row("RUNNING"))
    assert (found.state, found.message) == (
        JobState.UNKNOWN,
        "squeue does not answer: refused",
    )
    found = seen(unaccounted="sacct does not answer: refused", job="", arrived=False)
    assert (found.state, found.message) == (JobState.UNKNOWN, "sacct does not answer: refused")
    assert seen(unaccounted="refused", queued=row("RUNNING")).state == JobState.RUNNING


def test_what_never_came_to_slurm() -> None:
    assert seen(job="", submitting=True).state == JobState.PENDING
    assert seen(job="", fresh=True).message == "it is being submitted"
    found = seen(job="", arrived=False)
    assert (found.state, found.reason) == (JobState.FAILED, Reason.NOT_SUBMITTED)
    assert found.message == "it never reached the cluster; submit it anew"
    assert seen(job="").reason == Reason.NOT_SUBMITTED
    found = seen(job="", cancel_ordered=True, fresh=True)
    assert (found.state, found.message) == (JobState.CANCELLED, "before it was submitted")
    assert seen(job="", cancel_ordered=True, submitting=True).state == JobState.PENDING


def test_a_journal_that_is_not_whole() -> None:
    assert events(["", "179", "1795469900 beg", "1795469900 began x", "x began 1"]) == []
    assert seen(BEGAN, "1795469950 ended 1").state == JobState.FAILED


@pytest.mark.parametrize(
    ("reason", "expected", "words"),
    [
        ("Resources", Reason.RESOURCES, "as soon as enough nodes are free"),
        ("None", Reason.NONE, "Slurm's reason is None"),
        ("JobHeldUser", Reason.HELD, "`scontrol release 7`"),
        ("PartitionTimeLimit", Reason.NEVER, "partition batch does not allow 10:00"),
        (
            "QOSMaxJobsPerUserLimit",
            Reason.RESOURCES,
            "the limit on jobs of QOS normal for each user is reached",
        ),
        (
            "QOSMaxGRESPerUser",
            Reason.RESOURCES,
            "GPUs or other generic resources of QOS normal for each user",
        ),
        ("AssocGrpCpuLimit", Reason.RESOURCES, "the limit on CPUs of its account is reached"),
        ("AssocGrpGRESMinutes", Reason.RESOURCES, "the limit on GPU minutes of its account is reached"),
        ("QOSMaxWallDurationPerJobLimit", Reason.NEVER, "it asks for more time than QOS normal allows"),
        ("AssocMaxNodePerJobLimit", Reason.NEVER, "it asks for more nodes than its account allows"),
        ("QOSMinGRES", Reason.NEVER, "so little of GPUs"),
        ("MaxNodePerAccount", Reason.RESOURCES, "the limit on nodes of its account for the account"),
        ("ReqNodeNotAvail, UnavailableNodes:node[003-004]", Reason.RESOURCES, "reserved: node[003-004]"),
        ("Dependency", Reason.DEPENDENCY, "job 14, 15_2"),
        ("SomethingNew", Reason.NONE, "Slurm's reason is SomethingNew"),
    ],
)
def test_why_it_waits(reason: str, expected: Reason, words: str) -> None:
    waits = row(
        "PENDING", reason, limit="10:00", dependency="afterok:14(unfulfilled),afterok:15_2(unfulfilled)"
    )
    found, said = why_pending(waits)
    assert found is expected
    assert words in said
    assert "{" not in said
