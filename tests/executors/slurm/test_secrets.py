"""What others can see: two users of one cluster, and every place where a secret's value might have got to."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from nemorun.errors import SubmitError
from nemorun.job import JobState, Reason

from .conftest import SlurmBench, eventually

#: Odd on purpose; no part of it but the last word is looked for.
VALUE = 'it\'s "$HOME" `id` \\n 100%\n hunter2-of-alice'
NEEDLE = "hunter2-of-alice"


@pytest.fixture
def running(slurm: Callable[..., SlurmBench], tmp_path: Path) -> SlurmBench:
    """A task of alice's with a secret, while it runs: until a file `go` is there."""
    bench = slurm("alice", comment="of alice")
    python = """
import os, time
value = os.environ["KEY"]
print("length", len(value), value.count("\\n"), "other" if "OTHER" in os.environ else "alone", flush=True)
while not os.path.exists("go"):
    time.sleep(0.05)
"""
    bench.add(python=python, secrets=("KEY",))
    bench.submit({"KEY": VALUE, "OTHER": "of another task"})
    eventually(lambda: bench.log().startswith("length"), 30)
    return bench


def finish(bench: SlurmBench) -> None:
    (bench.run_dir() / "go").touch()
    eventually(lambda: not bench.queued(), 30)


def test_a_secret_is_seen_by_its_task_and_by_nobody_else(running: SlurmBench, nemorun_home: Path) -> None:
    node = running.on_login("squeue --me --noheader --states=R --format=%N | tail -n 1").strip()
    job = running.run_dir().joinpath("job").read_text().strip()
    everywhere = {
        "scripts and folders": running.on_login(
            f"grep -rlF {NEEDLE} {running.executor.job_dir} --exclude=secrets || :"
        ),
        "scontrol": running.on_login(f"scontrol show job -dd {job}; scontrol write batch_script {job} -"),
        "processes on the login node": running.rig.on("login", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"),
        "processes on the node": running.rig.on(node, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"),
        "log": running.log(),
        "record": grep(running.folder),
        "home of nemorun": grep(nemorun_home),
    }
    secrets = running.run_dir() / "secrets"
    assert oct(secrets.stat().st_mode & 0o777) == "0o600"
    assert running.log() == f"length {len(VALUE)} {VALUE.count(chr(10))} alone\n"
    finish(running)
    # which keeps scripts and environments, a while after the job has begun
    asked = f"sacct -j {job} -P -o ALL; sacct -j {job} --batch-script; sacct -j {job} --env-vars"

    def accounted() -> str:
        said = running.on_login(asked)
        return said if "#SBATCH" in said and "SLURM_JOB_NAME=" in said else ""

    everywhere["accounting"] = eventually(accounted, 30)
    everywhere["logs of Slurm"] = running.rig.on(
        "ctl", f"grep -rlF {NEEDLE} /var/log/slurm* /var/spool/slurm* /tmp 2>/dev/null"
    )
    assert [place for place, text in everywhere.items() if NEEDLE in text] == []
    for listing in ("scripts and folders", "record", "home of nemorun", "logs of Slurm"):
        assert everywhere[listing] == "", listing
    assert not secrets.exists()


def grep(folder: Path) -> str:
    return subprocess.run(["grep", "-rlF", NEEDLE, str(folder)], text=True, capture_output=True).stdout


def test_two_users_see_nothing_of_each_other(running: SlurmBench, slurm: Callable[..., SlurmBench]) -> None:
    bob = slurm("bob")
    bob.add(command=("true",))
    bob.submit()
    for me, other in ((bob, running), (running, bob)):
        folder = f"/home/{other.user}/{other.home.name}"
        looked = me.on_login(
            f"exec 2>/dev/null; ls -R {folder}; cat {folder}/*/*/*/*/*; cd {folder} && echo in; :"
        )
        assert looked == ""
        processes = me.on_login("cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'")
        assert NEEDLE not in processes
    job = running.run_dir().joinpath("job").read_text().strip()
    assert NEEDLE not in bob.on_login(f"scontrol show job -dd {job}")
    assert NEEDLE not in bob.on_login(f"scontrol write batch_script {job} - 2>&1 || :")
    finish(running)


def test_a_job_that_is_cancelled_before_it_starts_leaves_no_secret(
    slurm: Callable[..., SlurmBench],
) -> None:
    bench = slurm(sbatch_args=["--begin=now+1hour"])
    bench.add(command=("true",), secrets=("KEY",))
    bench.submit({"KEY": VALUE})
    assert NEEDLE in (bench.run_dir() / "secrets").read_text()
    bench.executor.cancel(bench.refs)
    assert grep(bench.home) == ""


def test_secrets_of_tasks_that_never_began_go_with_the_poll_that_finds_their_end(
    slurm: Callable[..., SlurmBench],
) -> None:
    bench = slurm(sbatch_args=["--begin=now+1hour"])
    bench.add("first", command=("true",), secrets=("KEY",))
    bench.add("second", command=("true",), secrets=("KEY",), dependencies=("first",))
    first = bench.submit({"KEY": VALUE})["first"]
    assert bench.status("first").state is JobState.PENDING
    assert len(grep(bench.home).split()) == 2
    bench.on_login(f"scancel {first}")
    ended = bench.wait()
    assert (ended["first"].reason, ended["second"].reason) == (Reason.CANCELLED, Reason.DEPENDENCY_FAILED)
    assert grep(bench.home) == ""


def test_secrets_that_cannot_be_deleted_are_named(slurm: Callable[..., SlurmBench]) -> None:
    bench = slurm(sbatch_args=["--begin=now+1hour"])
    bench.add(command=("true",), secrets=("KEY",))
    bench.submit({"KEY": VALUE})
    (bench.run_dir() / "secrets").unlink()
    (bench.run_dir() / "secrets").mkdir()
    bench.on_login("scancel --me --name=task." + bench.id)
    status = bench.wait()["task"]
    assert status.state is JobState.CANCELLED
    assert "delete its secrets there" in status.message and "tasks/task/secrets" in status.message


def test_what_somebody_else_has_put_into_job_dir_is_not_run(slurm: Callable[..., SlurmBench]) -> None:
    bench = slurm()
    folder = f"/lustre/{bench.id}"
    bench.rig.on(
        "login", f"mkdir -p {folder}/lib; chmod 1777 {folder}; chown bob {folder}/lib; chmod 755 {folder}/lib"
    )
    bench.executor.job_dir = folder
    bench.add(command=("true",))
    try:
        with pytest.raises(SubmitError, match=f"{folder}/lib is another user's"):
            bench.submit()
    finally:
        bench.rig.on("login", f"rm -r {folder}")
