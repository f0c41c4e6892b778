"""Submission to a real Slurm: each job exactly once, whatever breaks on the way; and its cancelling."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemorun.errors import SubmitError, SubmitUnclear
from nemorun.executors.slurm import cluster as cluster_module
from nemorun.executors.slurm.cluster import Cluster
from nemorun.executors.slurm.facts import Facts
from nemorun.executors.slurm.library import library
from nemorun.executors.slurm.paths import remote_experiment_dir, remote_results_dir, remote_run_dir
from nemorun.executors.slurm.payload import Payload, plan
from nemorun.executors.slurm.units import Unit
from nemorun.remote.connection import Completed, Connection
from nemorun.remote.errors import ConnectionLost

from .conftest import SlurmBench, eventually

#: Jobs that are submitted and cancelled, and never start.
LATER: dict[str, Any] = {"sbatch_args": ["--begin=now+1hour"]}


@pytest.fixture
def later(slurm: Callable[..., SlurmBench]) -> SlurmBench:
    return slurm(**LATER)


# Pure


def test_folders_there_are_as_they_are_here() -> None:
    folder = "/home/me/.nemorun/experiments/my-run-k3x9q2"
    assert remote_run_dir("k3x9q2.a.b", f"{folder}/tasks/a.b") == "experiments/my-run-k3x9q2/tasks/a.b"
    assert (
        remote_experiment_dir("k3x9q2.a", f"{folder}/group-2/tasks/a") == "experiments/my-run-k3x9q2/group-2"
    )
    for part in ("", "/group-2"):
        results = Path(f"{folder}{part}/tasks/a/results")
        assert remote_results_dir(results) == f"experiments/my-run-k3x9q2{part}/tasks/a/results"


def array(count: int, after: tuple[str, ...] = (), limit: int | None = None) -> Unit:
    return Unit("array-1", "", tuple(f"t{number}" for number in range(count)), after, limit)


@pytest.mark.parametrize(
    ("units", "lines"),
    [
        ([Unit("a", "", ("a",)), Unit("b", "", ("b",), ("a",))], ["a 0 - - - - -", "b 0 - - a - -"]),
        ([array(4, limit=2)], ["array-1 0 4 - - - -"]),
        ([array(5)], ["array-1 0 4 0-3 - - -", "array-1 4 1 0-0 - - -"]),
        ([array(9, limit=2)], [
            "array-1 0 4 0-3%2 - - -", "array-1 4 4 0-3%2 - + -", "array-1 8 1 0-0%2 - + -",
        ]),
        ([array(3), Unit("z", "", ("z",), ("t1",))], ["array-1 0 3 - - - -", "z 0 - - t1 - -"]),
        ([array(6), Unit("z", "", ("z",), tuple(f"t{n}" for n in range(6)))], [
            "array-1 0 4 0-3 - - -", "array-1 4 2 0-1 - - -", "z 0 - - +t0,+t4 - -",
        ]),
        ([Unit("a", "", ("a",), dependency="afterany:7")], ["a 0 - - - - afterany:7"]),
    ],
)  # fmt: skip
def test_calls_of_sbatch_in_a_plan(units: list[Unit], lines: list[str]) -> None:
    assert plan(units, 4) == lines


def test_nemorun_itself_is_packed_once_and_runs_by_python_alone(tmp_path: Path) -> None:
    archive = library()
    before = archive.stat()
    assert library() == archive and archive.stat().st_mtime_ns == before.st_mtime_ns
    with tarfile.open(archive) as tar:
        assert {"__main__.py", "nemorun/executors/base.py", "nemorun/executors/slurm/submit.sh"} <= set(
            tar.getnames()
        )
        tar.extractall(tmp_path / "library")
    (tmp_path / "nemorun").symlink_to("library")
    (tmp_path / "script.py").write_text("def main(a: int = 1):\n    print('value', a)\n")
    (tmp_path / "task.yaml").write_text("_target_: script:script.py:main\n_partial_: true\na: 2\n")
    words = [sys.executable, "-I", "-S", "nemorun", "task.yaml"]
    done = subprocess.run(words, cwd=tmp_path, text=True, capture_output=True)
    assert (done.stdout, done.stderr) == ("value 2\n", "")


def test_another_nemorun_is_another_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    first = library()
    monkeypatch.setattr("nemorun.executors.slurm.library._MAIN", "print('changed')\n")
    assert library() != first


# On the cluster


def test_tasks_run_in_order_with_what_was_sent(bench: SlurmBench) -> None:
    bench.add("first", yaml="_target_: os.getcwd\n_partial_: true\n")
    bench.add(
        "second",
        command=("sh", "-c", f"ls {bench.run_dir('first').name} ../first; env"),
        dependencies=("first",),
    )
    handles = bench.submit()
    assert [bench.run_dir(name).joinpath("job").read_text() for name in handles] == [
        f"{handle}\n" for handle in handles.values()
    ]
    depends = bench.on_login(f"scontrol show job {handles['second']}")
    assert f"afterok:{handles['first']}" in depends or "Dependency=(null)" in depends
    eventually(lambda: not bench.queued(), 30)
    assert [line.split()[1:3] for line in (bench.run_dir("first") / "journal").read_text().splitlines()] == [
        ["began", "1"],
        ["ended", "1"],
    ]
    assert "result.json" in bench.log("second")
    assert oct(bench.remote().stat().st_mode & 0o777) == "0o700"


def test_submitting_again_changes_nothing(later: SlurmBench) -> None:
    later.add("a", command=("true",), secrets=("KEY",))
    later.add("b", command=("false",), dependencies=("a",))
    handles = later.submit({"KEY": "x"})
    (later.run_dir("a") / "secrets").unlink()  # as when it has ended
    assert later.submit({"KEY": "x"}) == handles
    assert sorted(later.queued()) == sorted(handles.values())
    assert not (later.run_dir("a") / "secrets").exists()


def test_jobs_whose_answer_was_lost_are_found_by_their_names(later: SlurmBench) -> None:
    later.add("lone", command=("false",), dependencies=("t0",))
    for number in range(3):
        later.add(f"t{number}", command=("true",))
    handles = later.submit()
    (later.remote() / "answer").unlink()
    for name in handles:
        (later.run_dir(name) / "job").unlink()
    assert later.submit() == handles
    assert set(later.queued()) == set(handles.values())


def losing(monkeypatch: pytest.MonkeyPatch, connection: Connection, times: int, *, after: bool) -> list[int]:
    """The connection is lost at its first commands with input, before or after they have run."""
    run, lost = connection.run, []
    monkeypatch.setattr(cluster_module.time, "sleep", lambda seconds: None)

    def losing_run(command: str, stdin: Any = b"", **options: Any) -> Completed:
        if stdin and len(lost) < times:
            if after:
                run(command, stdin, **options)
            lost.append(len(lost))
            raise ConnectionLost("cut", may_have_run=True)
        return run(command, stdin, **options)

    monkeypatch.setattr(connection, "run", losing_run)
    return lost


@pytest.mark.parametrize("after", [False, True])
def test_a_lost_connection_submits_once(
    later: SlurmBench, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    later.add("a", command=("true",))
    lost = losing(monkeypatch, later.cluster.connection, 2, after=after)
    handles = later.submit()
    assert len(lost) == 2 and list(later.queued()) == [handles["a"]]


def test_a_connection_that_stays_lost_leaves_it_open(
    later: SlurmBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    later.add("a", command=("true",))
    monkeypatch.setattr(cluster_module, "PATIENCE", 0.0)
    losing(monkeypatch, later.cluster.connection, 1, after=True)
    with pytest.raises(SubmitUnclear, match=later.id):
        later.submit()
    later.executor.cancel(later.refs)
    assert not later.queued()


def packed(bench: SlurmBench) -> tuple[str, bytes]:
    """The command and the input that submit it."""
    payload = Payload(bench.executor.render(bench.jobs), {}, library())  # type: ignore[arg-type]
    command = bench.cluster.plain_command(
        "submit.sh", ID=payload.id, EXP=payload.folder, WANTED=" ".join(payload.archives)
    )
    return command, payload.packed(frozenset(), 1001)


def test_half_of_the_files_submit_nothing(later: SlurmBench) -> None:
    later.add("a", command=("true",))
    command, data = packed(later)
    for size in (0, 1, 100, len(data) // 2, len(data) - 9, len(data) - 1):
        done = later.cluster.run(command, data[:size], retry=False)
        assert (done.returncode, done.stdout) == (95, ""), size
    assert not later.queued()
    assert list((later.home / "experiments").iterdir()) == []


def test_two_submissions_at_once_are_one(later: SlurmBench) -> None:
    from concurrent.futures import ThreadPoolExecutor

    later.add("a", command=("true",))
    command, data = packed(later)
    with ThreadPoolExecutor(3) as threads:
        done = list(threads.map(lambda _: later.cluster.run(command, data, retry=False), range(3)))
    assert len({one.stdout for one in done}) == 1 and done[0].stdout.startswith("ok\na ")
    assert len(later.queued()) == 1


def with_programs(bench: SlurmBench, monkeypatch: pytest.MonkeyPatch, **programs: str) -> Path:
    """Shell scripts that stand before Slurm's own commands on the cluster; returns their folder."""
    folder = bench.home / "bin"
    at = f"~/{bench.home.name}/bin"
    text = "".join(
        f"cat >{at}/{name} <<'END'\n#!/bin/sh\n{source}\nEND\nchmod +x {at}/{name}\n"
        for name, source in programs.items()
    )
    bench.on_login(f"mkdir -p {at}\n{text}")
    plain = Cluster.command
    monkeypatch.setattr(Cluster, "command", lambda *a, **k: f"PATH={at}:$PATH\n{plain(*a, **k)}")
    return folder


def test_an_sbatch_that_answers_late_is_not_called_twice(
    later: SlurmBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The controller has taken the job, but sbatch does not hear of it."""
    answered_late = """
    echo >>"$(dirname "$0")/calls"
    /usr/bin/sbatch "$@" >/dev/null
    echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2
    exit 1"""
    folder = with_programs(later, monkeypatch, sbatch=answered_late)
    later.add("a", command=("true",))
    handles = later.submit()
    assert list(later.queued()) == [handles["a"]]
    assert (folder / "calls").read_text() == "\n"


def test_an_sbatch_that_fails_for_a_moment_is_called_again(
    later: SlurmBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy_at_first = """
    mkdir "$(dirname "$0")/called" 2>/dev/null || exec /usr/bin/sbatch "$@"
    echo "sbatch: error: Unable to contact slurm controller (connect failure)" >&2
    exit 1"""
    with_programs(later, monkeypatch, sbatch=busy_at_first)
    later.add("a", command=("true",))
    handles = later.submit()
    assert list(later.queued()) == [handles["a"]]


def test_who_cannot_look_what_was_submitted_leaves_it_alone(
    later: SlurmBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    later.add("a", command=("true",))
    handles = later.submit()
    (later.remote() / "answer").unlink()
    (later.run_dir("a") / "job").unlink()
    with_programs(later, monkeypatch, squeue="echo 'Unable to contact' >&2; exit 1", sleep="")
    with pytest.raises(SubmitUnclear, match="Unable to contact"):
        later.submit()
    assert list(later.queued()) == [handles["a"]]
    assert not (later.run_dir("a") / "cancelled").exists()


def test_a_controller_that_stays_away_submits_nothing(
    later: SlurmBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    later.add("a", command=("true",), secrets=("KEY",))
    away = "echo 'sbatch: error: Unable to contact slurm controller (connect failure)' >&2; exit 1"
    with_programs(later, monkeypatch, sbatch=away, sleep="")
    for _ in range(2):
        with pytest.raises(SubmitError, match=r"did not answer.*cancelled"):
            later.submit({"KEY": "x"})
    assert (later.run_dir("a") / "cancelled").exists()  # should it come to be after all
    assert not (later.run_dir("a") / "secrets").exists()


def test_without_locks_in_the_file_system_a_folder_is_the_lock(
    later: SlurmBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And who left it behind an hour ago does not block others for ever."""
    later.add("a", command=("true",))
    with_programs(later, monkeypatch, flock="echo 'flock: 9: No locks available' >&2; exit 1", sleep="")
    stale = later.remote("submit.lock.d")
    folder = stale.relative_to(later.home.parent)
    later.on_login(f"mkdir -p ~/{folder}; touch -d '1 hour ago' ~/{folder}")
    handles = later.submit()
    assert list(later.queued()) == [handles["a"]] and not stale.exists()


def test_a_refusal_takes_back_what_was_submitted(later: SlurmBench) -> None:
    later.add("good", command=("true",), secrets=("KEY",))
    later.add("bad", command=("true",), dependencies=("good",))
    rendered = later.executor.render(later.jobs)
    odd = [
        replace(
            unit, script=unit.script.replace("#SBATCH --time", "#SBATCH --constraint=unicorn\n#SBATCH --time")
        )
        if unit.name == "bad"
        else unit
        for unit in rendered.units  # type: ignore[attr-defined]
    ]
    for _ in range(2):  # who asks again hears the same
        with pytest.raises(SubmitError, match=r"refused 'bad'.*[Ii]nvalid feature.*constraint"):
            later.executor.submit(replace(rendered, units=tuple(odd)), {"KEY": "x"})  # type: ignore[call-arg]
        assert not later.queued()
    assert not (later.run_dir("good") / "secrets").exists()


def test_tasks_go_four_at_a_time_and_none_before_what_it_waits_for(
    later: SlurmBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sbatch ends only when four have begun, and says how many were at work."""
    met = """
    bin=$(dirname "$0"); mkdir -p "$bin/begun" "$bin/working"; : >"$bin/begun/$$"; : >"$bin/working/$$"
    until [ "$(ls "$bin/begun" | wc -l)" -ge 4 ]; do
        tries=$((tries + 1)); [ "$tries" -lt 300 ] || exit 1
        sleep 0.1
    done
    ls "$bin/working" | wc -l >>"$bin/counts"
    /usr/bin/sbatch "$@"; code=$?
    rm "$bin/working/$$"
    exit "$code"
    """
    folder = with_programs(later, monkeypatch, sbatch=met)
    for number in range(8):
        later.add(f"t{number}", command=("true", str(number)))
    later.add("last", command=("true", "last"), dependencies=("t0", "t7"))
    handles = later.submit()
    counts = [int(line) for line in (folder / "counts").read_text().split()]
    assert len(counts) == 9 and max(counts) == 4 and counts[-1] == 1
    assert {job: name.partition(".")[0] for job, name in later.queued().items()} == {
        handle: name for name, handle in handles.items()
    }
    shown = later.on_login(f"scontrol show job {handles['last']}")
    assert f"afterok:{handles['t0']}(unfulfilled),afterok:{handles['t7']}(unfulfilled)" in shown


def test_a_refusal_among_many_leaves_none_of_them(later: SlurmBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are just being submitted when it comes, too: they are held up until it was answered."""
    one_refused = """
    bin=$(dirname "$0")
    case "$*" in
    *t2.sbatch*) echo "sbatch: error: Invalid feature specification" >&2; exit 1 ;;
    *t1.sbatch*) until [ -e "$bin/../$(cat "$bin/experiment")/tasks/t1/cancelled" ]; do sleep 0.1; done ;;
    esac
    /usr/bin/sbatch "$@"
    """
    folder = with_programs(later, monkeypatch, sbatch=one_refused)
    for number in range(8):
        later.add(f"t{number}", command=("true", str(number)), secrets=("KEY",))
    experiment = later.remote().relative_to(later.home)
    later.on_login(f"echo {experiment} >~/{folder.relative_to(later.home.parent)}/experiment")
    for _ in range(2):
        with pytest.raises(SubmitError, match=r"refused 't2'.*[Ii]nvalid feature"):
            later.submit({"KEY": "x"})
        assert not later.queued()
    assert (later.run_dir("t1") / "job").exists()  # it was submitted, and called back
    assert not any(later.remote().glob("tasks/*/secrets"))


def test_nothing_of_the_surroundings_leaks_in(bench: SlurmBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.add(command=("env",))
    plain = Cluster.command
    noise = "export SBATCH_PARTITION=interactive SLURM_CPU_BIND=none SQUEUE_FORMAT=x SCANCEL_QOS=low MINE=1\n"
    monkeypatch.setattr(Cluster, "command", lambda *a, **k: noise + plain(*a, **k))
    handle = bench.submit()["task"]
    assert "Partition=batch" in bench.on_login(f"scontrol show job {handle}")
    eventually(lambda: not bench.queued(), 30)
    names = {line.partition("=")[0] for line in bench.log().splitlines()}
    assert "SLURM_JOB_ID" in names
    assert not names & {"MINE", "SBATCH_PARTITION", "SQUEUE_FORMAT", "THEN", "JOB_DIR"}
    assert "SLURM_CPU_BIND=none" not in bench.log()


def test_a_large_array_is_split_and_its_limit_kept(
    bench: SlurmBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Facts, "max_array_size", 3)
    bench.executor.array = "%2"
    for number in range(7):
        bench.add(f"t{number}", command=("sh", "-c", "echo $NEMORUN_TASK"))
    handles = bench.submit()
    jobs = list(dict.fromkeys(handle.partition("_")[0] for handle in handles.values()))
    assert list(handles.values()) == [f"{jobs[n // 3]}_{n % 3}" for n in range(7)]
    assert "ArrayTaskThrottle=2" in bench.on_login(f"scontrol show job {jobs[2]}")
    assert f"afterany:{jobs[1]}" in bench.on_login(f"squeue --noheader --jobs={jobs[2]} --format=%E")
    eventually(lambda: not bench.queued(), 40)
    assert [bench.log(f"t{number}") for number in range(7)] == [f"t{number}\n" for number in range(7)]


def test_a_hundred_tasks_take_two_commands(
    slurm: Callable[..., SlurmBench], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = slurm(array=False, **LATER)
    for number in range(100):
        bench.add(f"t{number}", command=("true",))
    commands = []
    run = bench.cluster.connection.run
    monkeypatch.setattr(
        bench.cluster.connection, "run", lambda *a, **k: commands.append(a[0]) or run(*a, **k)
    )
    handles = bench.submit()
    assert len(commands) == 2 and len(set(handles.values())) == 100
    bench.executor.cancel(bench.refs)
    assert len(commands) == 3


def test_cancelling_reaches_all_and_once_more_does_nothing(slurm: Callable[..., SlurmBench]) -> None:
    bench = slurm()
    for number in range(3):
        bench.add(f"t{number}", command=("sleep", "600"), secrets=("KEY",))
    bench.add("waits", command=("false",), dependencies=("t0",))
    handles = bench.submit({"KEY": "x"})
    kept = handles.pop("t2")
    (bench.run_dir("t1") / "job").unlink()  # its submission was never confirmed
    refs = [ref for ref in bench.refs if ref.name != "t2"]
    for _ in range(2):
        bench.executor.cancel(refs)
    eventually(lambda: set(bench.queued()) == {kept})
    assert (bench.run_dir("t1") / "cancelled").exists() and not (bench.run_dir("t1") / "secrets").exists()
    assert (bench.run_dir("t2") / "secrets").exists()


def test_elements_of_an_array_are_cancelled_together(
    later: SlurmBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):
        later.add(f"t{number}", command=("true",))
    later.add("alone", command=("false",))
    handles = later.submit()
    kept = handles["t3"]
    counting = 'for word; do echo "$word" >>"$(dirname "$0")/words"; done; exec /usr/bin/scancel "$@"'
    folder = with_programs(later, monkeypatch, scancel=counting)
    later.executor.cancel([ref for ref in later.refs if ref.name != "t3"])
    array = kept.partition("_")[0]
    words = {"--quiet", f"{array}_[0,1,2,4,5,6,7]", handles["alone"]}
    assert sorted((folder / "words").read_text().split()) == sorted(words)
    assert set(later.queued()) == {kept}


def test_what_the_users_variables_say_changes_nothing(
    later: SlurmBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm's commands would look for jobs elsewhere, and would print them otherwise."""
    later.add(command=("true",))
    later.submit()
    (later.run_dir() / "job").unlink()
    plain = Cluster.command
    noise = "export SQUEUE_PARTITION=interactive SQUEUE_FORMAT=%u SCANCEL_STATE=RUNNING\n"
    monkeypatch.setattr(Cluster, "command", lambda *a, **k: noise + plain(*a, **k))
    later.executor.cancel(later.refs)
    assert not later.queued()


def test_cancelling_what_was_never_submitted_is_no_error(bench: SlurmBench) -> None:
    bench.add(command=("true",))
    bench.executor.cancel(bench.refs)


def test_what_was_cancelled_before_it_was_submitted_does_not_start(later: SlurmBench) -> None:
    """The order came while the submission was under way."""
    later.add("a", command=("true",))
    later.add("b", command=("false",), dependencies=("a",))
    command, data = packed(later)
    later.submit()
    later.executor.cancel(later.refs)
    (later.remote() / "answer").unlink()
    for name in "ab":
        (later.run_dir(name) / "job").unlink()
    done = later.cluster.run(command, data, retry=False)
    assert done.returncode == 0 and not later.queued()


def test_inside_an_allocation_it_works_without_ssh(bench: SlurmBench) -> None:
    """By the nemorun that was sent; what surrounds it is not what the job is to be."""
    bench.add(command=("true",))
    bench.submit()
    code = f"""
import sys
sys.path[:0] = ["nemorun", "nemorun/fallback"]
from nemorun.executors.slurm import SlurmExecutor
from nemorun.job import JobRef, JobSpec, Resources
later = ["--begin=now+1hour"]
executor = SlurmExecutor(job_dir="~/{bench.home.name}", time="5", mem="100", sbatch_args=later)
executor.validate()
folder = "/tmp/x-in{bench.id}/tasks/task"
job = JobSpec("task", "in{bench.id}.task", folder, Resources(), command=("true",), cwd="/")
print(executor.submit(executor.render([job]), {{}})["task"])
executor.cancel([JobRef("task", job.token, job.run_dir)])
"""
    folder = remote_experiment_dir(bench.jobs[0].token, bench.jobs[0].run_dir)
    around = "srun --quiet --mem=100 --time=1 --qos=low --job-name=around --immediate=20"
    command = f"cd ~/{bench.home.name}/{folder}; NEMORUN_HOME=$PWD/home {around} python3 -"
    handle = bench.cluster.connection.run(command, code, check=True).stdout.strip()
    shown = bench.on_login(f"scontrol show job {handle}")
    assert f"Comment=nemorun:in{bench.id}.task" in shown
    assert "QOS=normal" in shown and "JobState=CANCELLED" in shown


def test_a_disk_that_fills_up_is_named(bench: SlurmBench, monkeypatch: pytest.MonkeyPatch) -> None:
    full = "printf 'tar: a: Wrote only 1 of 2\\ntar: b: No space left on device\\n' >&2; exit 2"
    with_programs(bench, monkeypatch, tar=full)
    bench.add(python="")
    with pytest.raises(SubmitError, match=r"did not arrive whole .* No space left on device; nothing was"):
        bench.submit()
