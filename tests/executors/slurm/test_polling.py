"""Polls on a real Slurm. Jobs that must stand in a certain state are submitted by hand."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from nemorun.executors.slurm import polling, states
from nemorun.executors.slurm.paths import remote_experiment_dir
from nemorun.executors.slurm.polling import ASK_AFTER, ASK_AT_MOST, _Memory
from nemorun.job import JobRef, JobState, JobStatus, Reason
from tests.executors.slurm.conftest import SlurmBench, eventually

Benches = Callable[..., SlurmBench]
NO_ACCOUNTING = (
    'timeout() { shift; "$@"; }; sacct() { echo "Slurm accounting storage is disabled" >&2; return 1; };'
)
NO_CONTROLLER = (
    'timeout() { shift; "$@"; }; squeue() { echo "Unable to contact slurm controller" >&2; return 1; };'
)


class Spy:
    """Counts the commands that a bench's connection runs; `before` is put in front of each."""

    def __init__(self, bench: SlurmBench, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands: list[str] = []
        self.before = ""
        run = bench.cluster.connection.run

        def watched(command: str, *rest: object, **options: object) -> object:
            self.commands.append(command)
            return run(f"{self.before}\n{command}", *rest, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(bench.cluster.connection, "run", watched)

    @property
    def asked(self) -> list[bool]:
        return ["ASK=1" in command for command in self.commands]


@pytest.fixture
def spy(bench: SlurmBench, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spy]:
    spy = Spy(bench, monkeypatch)
    yield spy
    spy.before = ""  # the bench is cleaned with what is really there


def by_hand(bench: SlurmBench, name: str, script: str, *options: str, lines: str = "") -> JobRef:
    """A job as our submission would leave it, but with this script."""
    ref = bench.add(name, python="")
    sbatch = ["sbatch", "--parsable", f"--job-name={name}.{bench.id}", "--mem=100", "--time=5"]
    sbatch += [f"--output=tasks/{name}/logs/slurm-%j.log", *options, f"--wrap={script}"]
    bench.on_login(
        f"mkdir -p {folder(bench)}/tasks/{name}/logs; cd {folder(bench)}; "
        f"echo '{name} -' > tasks/{name}/unit; {lines or 'true'}; {shlex.join(sbatch)} > tasks/{name}/job"
    )
    return ref


def folder(bench: SlurmBench) -> str:
    where = bench.folder / "tasks" / "x"
    return f"{bench.executor.job_dir}/{remote_experiment_dir(f'{bench.id}.x', str(where))}"


def poll(bench: SlurmBench, *refs: JobRef) -> list[JobStatus]:
    statuses = bench.executor.poll(refs or bench.refs)
    return [statuses[ref.token] for ref in refs or bench.refs]


def forget() -> None:
    """As another process would find it."""
    polling._memories.clear()


def age(bench: SlurmBench) -> None:
    """The record was written an hour ago."""
    for ref in bench.refs:
        os.utime(ref.run_dir, (time.time() - 3600,) * 2)


def test_an_experiment_from_submission_to_its_end(bench: SlurmBench) -> None:
    bench.add("prepare", yaml="_target_: builtins.list\n_partial_: true\n")
    bench.add("train", python="import os, sys; sys.exit(3)", dependencies=("prepare",))
    bench.add("report", python="", dependencies=("train",))
    bench.submit()
    waiting = bench.status("train")
    assert (waiting.state, waiting.reason) in [
        (JobState.PENDING, Reason.DEPENDENCY),
        (JobState.PENDING, Reason.NONE),
        (JobState.RUNNING, Reason.NONE),
    ]
    done = bench.wait()
    assert (done["prepare"].state, done["prepare"].exit_code) == (JobState.SUCCEEDED, 0)
    result = Path(bench.ref("prepare").run_dir) / "result.json"
    assert result.read_text() == "[]\n"
    assert result.stat().st_mode & 0o777 == 0o600
    failed = done["train"]
    assert (failed.state, failed.reason, failed.exit_code) == (JobState.FAILED, Reason.EXIT_CODE, 3)
    assert (failed.attempt, failed.message.startswith("rank 0")) == (1, True)
    assert failed.started_at and failed.ended_at and failed.started_at <= failed.ended_at
    assert (done["report"].state, done["report"].reason) == (JobState.FAILED, Reason.DEPENDENCY_FAILED)


def test_an_array_whose_elements_are_tried_again(bench: SlurmBench) -> None:
    for name in ("first", "second"):
        bench.add(name, python="import os, sys; sys.exit(os.environ['NEMORUN_ATTEMPT'] == '1')", retries=1)
    bench.submit()
    told: set[tuple[str, str]] = set()

    def over() -> bool:
        statuses = poll(bench)
        told.update((status.state.value, status.message.partition(";")[0]) for status in statuses)
        return all(status.state.ended for status in statuses)

    eventually(over, 60)
    assert ("PENDING", "attempt 1 ended with 1") in told
    assert [(status.state, status.attempt) for status in poll(bench)] == [(JobState.SUCCEEDED, 2)] * 2
    assert "it is started again" in bench.log("second")  # says the batch script of this element


def test_a_hundred_jobs_are_one_command(bench: SlurmBench, spy: Spy) -> None:
    refs = [bench.add(f"t{number}", python="") for number in range(100)]
    journal = "1795469900 began 1 1_1 node001\\n1795469950 ended 1 succeeded 0\\n"
    bench.on_login(
        f"mkdir -p {folder(bench)}; cd {folder(bench)}; id=$(sbatch --parsable --hold --array=0-99 --mem=100 "
        f"--job-name=array-1.{bench.id} --output=/dev/null --wrap=true); for n in $(seq 0 99); do "
        "mkdir -p tasks/t$n; echo array-1 $n > tasks/t$n/unit; echo ${id}_$n > tasks/t$n/job; done; "
        f"for n in $(seq 0 49); do printf '{journal}' > tasks/t$n/journal; done"
    )
    del spy.commands[:]
    statuses = poll(bench, *refs)
    assert len(spy.commands) == 1
    assert {status.state for status in statuses[:50]} == {JobState.SUCCEEDED}
    assert {(status.state, status.reason) for status in statuses[50:]} == {(JobState.PENDING, Reason.HELD)}


def test_the_controller_is_asked_seldom_and_journals_always(bench: SlurmBench, spy: Spy) -> None:
    ref = by_hand(bench, "held", "true", "--hold")
    other = by_hand(bench, "other", "true", "--hold")
    del spy.commands[:]
    assert poll(bench, ref)[0].reason is Reason.HELD
    assert poll(bench, ref)[0].reason is Reason.HELD
    assert spy.asked == [True, False]
    poll(bench, ref, other)  # which nobody has asked about
    assert spy.asked == [True, False, True]
    assert poll(bench, ref)[0].reason is Reason.HELD  # the other is not asked about now, and yet remembered
    assert poll(bench, other)[0].reason is Reason.HELD
    bench.on_login(f"cd {folder(bench)}; echo $(date +%s) ended 1 failed 7 > tasks/held/journal")
    del spy.commands[:]
    assert poll(bench, ref)[0].exit_code == 7
    assert spy.asked == [False]


def test_the_controller_is_asked_less_and_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(polling.time, "monotonic", lambda: now[0])
    memory, asked = _Memory(), []
    status = JobStatus(JobState.RUNNING)

    def look(status: JobStatus, message: str = "") -> None:
        due = memory.is_due(frozenset("a"))
        if due:
            asked.append(now[0])
            memory.slurm.tokens = frozenset("a")
        memory.note(due, {"a": status})
        now[0] += 0.5

    while now[0] < 200:
        look(status)
    pauses = [later - earlier for earlier, later in pairwise(asked)]
    assert pauses[0] <= 2 * ASK_AFTER
    assert pauses == sorted(pauses)
    assert pauses[-1] == ASK_AT_MOST
    del asked[:]
    changed = now[0]
    look(JobStatus(JobState.PENDING, Reason.BACKOFF))  # the journal says so
    while now[0] < changed + 10:
        look(JobStatus(JobState.PENDING, Reason.BACKOFF))
    assert asked[0] <= changed + ASK_AFTER + 0.5


def test_a_job_without_handle_is_found_by_its_name(bench: SlurmBench) -> None:
    held = by_hand(bench, "held", "true", "--hold")
    gone = by_hand(bench, "gone", "true", "--hold")
    bench.on_login(f"cd {folder(bench)}; scancel $(cat tasks/gone/job); rm tasks/*/job")
    age(bench)

    def found() -> bool:
        forget()
        first, second = poll(bench, held, gone)
        assert first.reason is Reason.HELD
        assert second.state is not JobState.FAILED
        return second.state is JobState.CANCELLED

    eventually(found, 20)


def test_a_number_that_slurm_gave_out_again_is_another_job(slurm: Benches) -> None:
    """As after a controller's crash, when it had accepted our job and not yet saved it."""
    other, lost = slurm(), slurm()
    other.add(command=("sleep", "600"))
    other.submit()
    eventually(lambda: other.status().state is JobState.RUNNING, 30)
    lost.add(command=("true",))
    lost.submit()
    lost.wait()
    (lost.run_dir() / "journal").unlink()
    (lost.run_dir() / "job").write_text((other.run_dir() / "job").read_text())
    polling._memories.clear()
    status = lost.status()
    assert status.state is JobState.UNKNOWN and "Slurm knows no job" in status.message, status
    lost.executor.cancel(lost.refs)
    assert other.status().state is JobState.RUNNING
    other.executor.cancel(other.refs)


def test_never_submitted(bench: SlurmBench) -> None:
    ref = bench.add("never", python="")
    assert poll(bench)[0].state is JobState.PENDING  # it may be on its way
    age(bench)
    forget()
    status = poll(bench, ref)[0]
    assert (status.state, status.reason) == (JobState.FAILED, Reason.NOT_SUBMITTED)
    # somebody is just submitting it
    bench.on_login(f"mkdir -p {folder(bench)}; cd {folder(bench)}; echo never - > submit.lock")
    holder = bench.on_login(
        f"cd {folder(bench)}; (flock 9; : > held; exec sleep 600 >/dev/null 2>&1) 9>submit.lock & "
        "echo $!; until [ -e held ]; do :; done"
    )
    forget()
    assert poll(bench, ref)[0].state is JobState.PENDING
    bench.on_login(f"kill {holder}")
    forget()
    assert poll(bench, ref)[0].reason is Reason.NOT_SUBMITTED


def test_a_missing_file_system_says_nothing_about_jobs(slurm: Benches) -> None:
    bench = slurm()
    bench.executor.job_dir = "/nowhere/of/mine"
    bench.add(python="")
    age(bench)
    status = poll(bench)[0]
    assert (status.state, status.message) == (
        JobState.UNKNOWN,
        "there is no folder /nowhere/of/mine there",
    )
    bench.executor.job_dir = "~/nr-state-unused"


def test_slurm_tells_what_the_job_could_not(bench: SlurmBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "JOURNAL_LAG", 0)
    by_hand(bench, "killed", "srun --overlap bash -c 'kill -9 $$'")
    by_hand(bench, "big", "srun --overlap python3 -c 'x = b\"a\" * (300 << 20)'")
    by_hand(bench, "mine", "sleep 60", "--hold")
    bench.rig.on("ctl", f"scancel {bench.run_dir('mine').joinpath('job').read_text()}")
    forget()

    def told() -> bool:
        forget()
        killed, big, mine = poll(bench, *bench.refs)
        return (
            (killed.reason, killed.exit_code) == (Reason.SIGNAL, 137)
            and killed.message.startswith("rank 0 on node")
            # without cgroups, the rig does not tell this one
            and big.reason in (Reason.OUT_OF_MEMORY, Reason.SIGNAL)
            and (mine.state, mine.message) == (JobState.CANCELLED, "by root")
        )

    eventually(told, 30)


def test_without_accounting(bench: SlurmBench, spy: Spy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "JOURNAL_LAG", 0)
    ref = by_hand(bench, "fails", "exit 3")
    spy.before = NO_ACCOUNTING

    def over() -> JobStatus | None:
        forget()
        status = poll(bench, ref)[0]
        return status if status.state.ended else None

    status = eventually(over, 30)
    assert (status.state, status.exit_code) == (JobState.FAILED, 3)


def test_while_the_controller_is_away(bench: SlurmBench, spy: Spy) -> None:
    held = by_hand(bench, "held", "true", "--hold")
    over = by_hand(bench, "over", "true", "--hold", lines="echo 1 ended 1 succeeded 0 > tasks/over/journal")
    spy.before = NO_CONTROLLER
    first, second = poll(bench, held, over)
    assert (first.state, first.message) == (
        JobState.UNKNOWN,
        "squeue does not answer: Unable to contact slurm controller",
    )
    assert second.state is JobState.SUCCEEDED


def test_json(slurm: Benches) -> None:
    bench = slurm(query="json")
    held = by_hand(bench, "held", "true", "--hold")
    first = bench.add("first", python="")
    bench.on_login(
        f"cd {folder(bench)}; mkdir tasks/first; echo array-1 1 > tasks/first/unit; id=$(sbatch --parsable "
        f"--hold --job-name=array-1.{bench.id} --array=0-2 --mem=100 --wrap=true); "
        "echo ${id}_1 > tasks/first/job"
    )
    assert {status.reason for status in poll(bench, held, first)} == {Reason.HELD}


def test_the_rank_that_failed_first_is_found(bench: SlurmBench) -> None:
    first, second = bench.add("first", python=""), bench.add("second", python="")
    write = "mkdir -p tasks/{0}/logs/attempt-1 tasks/{0}/logs/attempt-2; echo 7 > tasks/{0}/job; "
    write += "echo 5 ended 2 failed 3 > tasks/{0}/journal; "
    note = 'echo \'{{"time": {2}, "error": "E{2}"}}\' > tasks/first/logs/attempt-{0}/rank-{1}.failure; '
    notes = [note.format(*words) for words in ((1, 4, 1.5), (2, 10, 20.5), (2, 3, 9.25), (2, 5, 30))]
    notes += [note.format(1, 0, 2).replace("first", "second")]  # of the attempt before
    said = [
        "nemorun: attempt 1 of second: job 7 on node001",
        "srun: error: node001: task 1: Exited with exit code 9",
    ]
    said += ["nemorun: attempt 2 of second: job 7 on node002", "srun: error: node002: task 0: Terminated"]
    bench.on_login(
        f"mkdir -p {folder(bench)}; cd {folder(bench)}; {write.format('first')}{write.format('second')}"
        f"{''.join(notes)}printf '%s\n' {shlex.join(said)} > tasks/second/logs/slurm-7.log"
    )
    assert [status.message for status in poll(bench, first, second)] == [
        "rank 3: E9.25",
        "rank 0 on node002: Terminated",
    ]


def test_a_result_that_is_too_large_stays_there(bench: SlurmBench) -> None:
    make = "echo 1 ended 1 succeeded 0 > tasks/big/journal; "
    make += "head -c 1100000 /dev/zero | tr '\\0' 1 > tasks/big/result.json"
    ref = by_hand(bench, "big", "true", "--hold", lines=make)
    status = poll(bench, ref)[0]
    assert (status.state, "larger than 1 MiB" in status.message) == (JobState.SUCCEEDED, True)
    assert not (Path(ref.run_dir) / "result.json").exists()
