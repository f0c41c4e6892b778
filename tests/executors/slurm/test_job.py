"""What a batch script makes of its task's attempts: by bash alone, and on a real Slurm."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

import nemorun.executors.slurm
from tests.slurm_rig import Rig, eventually

JOB_SH = Path(nemorun.executors.slurm.__file__).with_name("job.sh")

#: As the renderer writes them, cut to what job.sh has to do with. A rank is a line of bash.
SCRIPT = """\
#!/bin/bash -l
TASK=${SLURM_JOB_NAME%.*}
source "./$TASK.settings"
source ./job.sh
launch srun --kill-on-bad-exit=1 --output="$LOGS/rank-%t.log" --open-mode=append bash -c "$RANK"
"""
ARRAY_SCRIPT = SCRIPT.replace("${SLURM_JOB_NAME%.*}", '$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" array.tasks)')

#: A rank that saves and asks to be resumed when it is told to stop, as the worker does; the next succeeds.
SAVES = """\
trap 'sleep 1; echo saved; touch "$NEMORUN_RUN_DIR/logs/attempt-1/resume"; exit 75' TERM USR2
[ "$NEMORUN_ATTEMPT" = 1 ] || exit 0
while :; do sleep 0.1; done
"""
WAITS = '[ "$NEMORUN_ATTEMPT" = 1 ] || exit 0; sleep 600'
IGNORES = f"trap '' TERM USR2; {WAITS}"


def events(journal: Path) -> list[str]:
    """The journal's lines without the time, the job and its nodes."""
    lines = [line.split() for line in journal.read_text().splitlines()] if journal.exists() else []
    return [" ".join(words[1:3] if words[1] == "began" else words[1:]) for words in lines]


# --- by bash alone ---


class Local:
    """An experiment's folder, and the batch script of its one task."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run_dir = folder / "tasks" / "task"
        self.run_dir.mkdir(parents=True)
        self.log = folder / "slurm.log"
        shutil.copy(JOB_SH, folder)
        self.stub("scontrol", "echo 'scontrol: error: requeue is disabled here' >&2; exit 1")

    def stub(self, name: str, script: str) -> None:
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def run(self, body: str = "launch true", settings: str = "") -> int:
        """The exit code of the batch script; what it says is in `log`."""
        script = f"TASK=task {settings}\nsource ./job.sh\n{body}\n"
        env = {"PATH": f"{self.folder}/bin:{os.environ['PATH']}", "HOME": str(self.folder)}
        env |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "task.k3x9q2", "SLURM_JOB_NODELIST": "node001"}
        with self.log.open("a") as log:
            return subprocess.run(
                ["bash", "-c", script], cwd=self.folder, env=env, stdout=log, stderr=log, timeout=30
            ).returncode

    @property
    def journal(self) -> list[str]:
        return events(self.run_dir / "journal")


@pytest.fixture
def local(tmp_path: Path) -> Local:
    return Local(tmp_path)


def test_it_sets_what_ranks_are_told(local: Local) -> None:
    assert local.run('launch env; echo "not reached"', settings="RESUMABLE=1") == 0
    assert local.journal == ["began 1", "ended 1 succeeded 0"]
    told = dict(line.split("=", 1) for line in local.log.read_text().splitlines() if "NEMORUN_" in line)
    assert told == {
        "NEMORUN_TASK": "task",
        "NEMORUN_EXPERIMENT": "k3x9q2",
        "NEMORUN_TOKEN": "k3x9q2.task",
        "NEMORUN_RUN_DIR": str(local.run_dir),
        "NEMORUN_RESULTS_DIR": f"{local.run_dir}/results",
        "NEMORUN_ATTEMPT": "1",
        "NEMORUN_RESUMABLE": "1",
    }
    assert (local.run_dir / "results").is_dir() and (local.run_dir / "logs" / "attempt-1").is_dir()


def test_its_exit_code_is_the_ranks(local: Local) -> None:
    assert local.run("launch sh -c 'exit 3'") == 3
    assert local.journal == ["began 1", "ended 1 failed 3"]


def test_a_script_that_ends_early_ends_the_task(local: Local) -> None:
    """What stands before `launch` is the user's."""
    assert local.run("set -eu; cd /nowhere; launch true") == 1
    assert local.journal == ["began 1", "ended 1 failed 1"]
    assert "ended before it had launched the task" in local.log.read_text()


def test_secrets_reach_the_ranks_and_are_deleted_at_the_end(local: Local) -> None:
    secrets = local.run_dir / "secrets"
    secrets.write_text("export KEY='it'\\''s $secret'\n")
    assert local.run("launch sh -c 'test \"$KEY\" = \"it'\\''s \\$secret\"'") == 0
    assert not secrets.exists()


def test_a_cluster_that_starts_no_job_again_is_told_in_words(local: Local) -> None:
    (local.run_dir / "secrets").write_text("")
    assert local.run("launch false", settings="RETRIES=2") == 1
    assert local.journal == ["began 1", "requeued 1 failed 1", "ended 1 failed 1"]
    assert "Slurm refuses to start job 7 again: scontrol: error: requeue is disabled" in local.log.read_text()
    assert not (local.run_dir / "secrets").exists()


def test_a_task_that_has_ended_for_good_is_not_started_again(local: Local) -> None:
    """Slurm may preempt the job between the last line of the journal and the end of the script."""
    assert local.run("launch false") == 1
    assert local.run("launch touch again") == 1
    assert local.journal == ["began 1", "ended 1 failed 1"]
    assert not (local.folder / "again").exists()


def test_a_job_that_slurm_took_late_does_not_run_the_task_a_second_time(local: Local) -> None:
    (local.run_dir / "secrets").write_text("")
    for other in ("70", "7_0", "70_7"):
        (local.run_dir / "job").write_text(f"{other}\n")
        assert local.run("launch touch again") == 1
    assert not (local.run_dir / "journal").exists() and (local.run_dir / "secrets").exists()
    assert not (local.folder / "again").exists()
    assert "this task has job 70, and job 7 is one too many" in local.log.read_text()
    (local.run_dir / "job").write_text("7\n")
    assert local.run("launch touch first") == 0 and (local.folder / "first").exists()
    (local.run_dir / "journal").unlink()
    (local.run_dir / "job").write_text("6_4\n")
    assert local.run("launch true") == 1
    assert local.run("launch true", settings="; SLURM_ARRAY_JOB_ID=6 SLURM_ARRAY_TASK_ID=4") == 0


def test_a_lost_node_is_excluded_though_the_script_was_killed_before_it_could(local: Local) -> None:
    local.stub(
        "scontrol",
        'case "$*" in *hostnames*) echo node001 ;; *"show job"*) echo "JobId=7 ReqNodeList=(null) '
        'ExcNodeList=(null)" ;; update*) echo "$*" >> updates ;; esac',
    )
    lost = ["lost 1 node-failure node001", "requeued 1 node-failure 143"]
    (local.run_dir / "journal").write_text("".join(f"9 {line}\n" for line in ["began 1 7 node001", *lost]))
    for times in (2, 3):
        assert local.run("launch touch started") == 0
        assert local.journal == ["began 1", *lost, *["requeued 1 node-failure 0"] * (times - 1)]
        assert not (local.folder / "started").exists()
    assert (local.folder / "updates").read_text() == "update JobId=7 ExcNodeList=node001\n" * 2
    # a cluster that gives no other node
    assert local.run("launch touch started") == 0
    assert local.journal[-2:] == ["began 2", "ended 2 succeeded 0"] and (local.folder / "started").exists()


def test_a_cancelled_task_is_not_started(local: Local) -> None:
    (local.run_dir / "cancelled").touch()
    (local.run_dir / "secrets").touch()
    assert local.run("launch touch started") == 143
    assert local.journal == ["ended 0 cancelled 143"]
    assert not (local.folder / "started").exists() and not (local.run_dir / "secrets").exists()


def test_a_resumable_task_that_was_cancelled_is_not_resumed(local: Local) -> None:
    assert local.run('launch sh -c "touch $RUN/cancelled; exit 75"', settings="RESUMABLE=1 RETRIES=3") == 75
    assert local.journal == ["began 1", "ended 1 cancelled 75"]


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        ("", "unknown -"),
        (
            "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO PREEMPTION ***",
            "preempted -",
        ),
        (
            "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO JOB REQUEUE ***",
            "requeued -",
        ),
    ],
)
def test_an_attempt_that_left_no_end_is_lost(local: Local, said: str, lost: str) -> None:
    assert local.run(f"echo {shlex.quote(said)} >&2; kill -KILL $$") == -9
    assert local.journal == ["began 1"]
    assert local.run() == 0
    assert local.journal == ["began 1", f"lost 1 {lost}", "began 2", "ended 2 succeeded 0"]


def test_a_lost_attempts_failed_nodes_are_named(local: Local) -> None:
    nodes = [
        f"NodeName=n{n} State={state} SlurmdStartTime=2020-01-01T00:00:00"
        for n, state in enumerate(["IDLE", "DOWN*", "MIXED", "IDLE+NOT_RESPONDING", "POWERED_DOWN"])
    ]
    nodes.append("NodeName=n5 State=IDLE SlurmdStartTime=2099-01-01T00:00:00")
    lines = "\n".join(nodes)
    local.stub("scontrol", f"case $* in *node*) echo '{lines}';; esac")
    local.run("kill -KILL $$")
    local.run()
    assert local.journal[1:] == ["lost 1 node-failure n1,n3,n5", "began 2", "ended 2 succeeded 0"]


def test_sruns_exit_code_is_not_believed_after_a_node_failed(local: Local) -> None:
    """srun says that a node failed, and ends with 0."""
    said = "launch sh -c 'echo \"srun: error: Node failure on n7\" >&2'"
    local.stub(
        "scontrol", 'case $* in "show hostnames n7") echo n7;; requeue*) echo disabled >&2; exit 1;; esac'
    )
    assert local.run(said) == 143
    expected = ["lost 1 node-failure n7", "requeued 1 node-failure 143", "ended 1 node-failure 143"]
    assert local.journal == ["began 1", *expected]


def test_the_exit_code_is_of_the_first_rank_that_failed(local: Local) -> None:
    """srun ends with the highest, which is that of the ranks that it killed for it."""
    said = "srun: error: n1: task 1: Exited with exit code 5\nsrun: error: n0: task 0: Terminated"
    assert local.run(f"launch sh -c 'echo \"{said}\" >&2; exit 143'", settings="RESUMABLE=1") == 5
    assert local.journal == ["began 1", "ended 1 failed 5"]


def test_it_is_not_interrupted_for_ever(local: Local) -> None:
    past = "".join(f"1 began {n} 7 node001\n1 requeued {n} preempted 75\n" for n in range(1, 20))
    (local.run_dir / "journal").write_text(past)
    assert local.run("kill -KILL $$") == -9
    assert local.run("kill -KILL $$") == -9
    assert local.journal[-2:] == ["lost 20 unknown -", "began 21"]
    assert local.run("launch touch started") == 1
    assert local.journal[-2:] == ["lost 21 unknown -", "ended 21 unknown 1"]
    assert not (local.folder / "started").exists()


def test_a_full_disk_and_a_missing_folder_are_told_in_words(local: Local) -> None:
    full = f"; exec 2> >(cat >{local.folder}/said); trap '' XFSZ; ulimit -f 0"  # no file may grow
    assert local.run("launch touch started", settings=full) == 73
    said = local.folder / "said"
    eventually(lambda: f"not be written to {local.run_dir}/journal: is the disk full?" in said.read_text())
    shutil.rmtree(local.run_dir)
    local.run_dir.touch()
    assert local.run("launch touch started") == 73
    assert f"{local.run_dir} cannot be written on " in local.log.read_text()
    assert not (local.folder / "started").exists()


# --- on a real Slurm ---


class Jobs:
    """Jobs of alice on the rig, in a folder of their own."""

    def __init__(self, rig: Rig) -> None:
        self.rig, self.id = rig, f"j{uuid.uuid4().hex[:6]}"
        self.folder = rig.home / f"nr-job-{self.id}"
        self.ids: dict[str, str] = {}
        (self.folder / "tasks").mkdir(parents=True)
        shutil.copy(JOB_SH, self.folder)
        (self.folder / "unit.sbatch").write_text(SCRIPT)
        (self.folder / "array.sbatch").write_text(ARRAY_SCRIPT)

    def as_alice(self, script: str) -> str:
        where = f"cd {shlex.quote(f'/home/alice/{self.folder.name}')}"
        return self.rig.on_login(f"runuser -u alice -- bash -c {shlex.quote(f'{where}; {script}')}")

    def prepare(self, name: str, rank: str, settings: str = "") -> Path:
        """Write a task's folder and settings; returns its journal."""
        run_dir = self.folder / "tasks" / name
        (run_dir / "logs").mkdir(parents=True)
        (self.folder / f"{name}.settings").write_text(f"{settings}\nRANK={shlex.quote(rank)}\n")
        self.own()
        return run_dir / "journal"

    def own(self) -> None:
        owner = self.rig.home.stat()
        for path in [self.folder, *self.folder.rglob("*")]:
            os.chown(path, owner.st_uid, owner.st_gid)

    def sbatch(self, name: str, *options: str, script: str = "unit") -> str:
        words = [
            "sbatch", "--parsable", f"--job-name={name}.{self.id}", "--requeue", "--open-mode=append",
            f"--output=tasks/{name}/logs/slurm-%j.log", "--mem=100", "--time=5", *options, f"{script}.sbatch",
        ]  # fmt: skip
        self.ids[name] = self.as_alice(shlex.join(words)).strip()
        assert self.ids[name].isdigit(), name
        return self.ids[name]

    def start(self, name: str, rank: str, *options: str, settings: str = "") -> str:
        self.prepare(name, rank, settings)
        return self.sbatch(name, *options)

    def journal(self, name: str) -> list[str]:
        return events(self.folder / "tasks" / name / "journal")

    def wait(self, name: str, seconds: float = 75) -> list[str]:
        """The journal, once its last line is an end."""
        eventually(lambda: any(line.startswith("ended ") for line in self.journal(name)), seconds)
        return self.journal(name)

    def state(self, name: str) -> str:
        """Slurm's state of the job, once it is over and done with."""
        show = f"scontrol -o show job {self.ids[name]} | grep -o ' JobState=[A-Z_]*'"
        return str(eventually(lambda: (now := self.as_alice(show).strip()[9:]) != "COMPLETING" and now))

    def log(self, name: str) -> str:
        return "".join(path.read_text() for path in (self.folder / "tasks" / name / "logs").glob("slurm-*"))

    def preempt(self, node: str) -> None:
        """A job of high QOS takes all GPUs of a node."""
        self.as_alice(
            f"sbatch --job-name=high.{self.id} --qos=high --gres=gpu:8 --nodelist={node} --mem=10 --time=1"
            " --output=/dev/null --wrap='sleep 1'"
        )

    def clean(self) -> None:
        names = "".join(f"|{name}.{self.id}" for name in [*self.ids, "high"])[1:]
        self.as_alice(f"scancel $(squeue --me -h -o '%A %j' | grep -wE '{names}' | cut -d ' ' -f 1)")
        # a job that is being ended may still write there
        eventually(lambda: not self.as_alice(f"squeue --me -h -o %j | grep -F .{self.id}"), 20)
        shutil.rmtree(self.folder)


@pytest.fixture(scope="module")
def jobs(rig: Rig) -> Iterator[Jobs]:
    """All jobs of the tests below, started at once so that they wait together."""
    jobs = Jobs(rig)
    succeeds = 'sleep 1; [ $NEMORUN_ATTEMPT = 2 ] && [ -n "$KEY" ]'
    (jobs.prepare("retried", succeeds, "RETRIES=2").parent / "secrets").write_text(
        "export KEY=hidden-words\n"
    )
    jobs.own()
    first = jobs.sbatch("retried")
    jobs.start("child", "true", f"--dependency=afterok:{first}", "--kill-on-invalid-dep=yes")
    fails = "[ $SLURM_PROCID = 1 ] || sleep 60; exit $((3 + NEMORUN_ATTEMPT))"
    hopeless = jobs.start("hopeless", fails, "--ntasks=2", settings="RESUMABLE=1 RETRIES=1")
    jobs.start("orphan", "true", f"--dependency=afterok:{hopeless}", "--kill-on-invalid-dep=yes")
    jobs.start("warned", SAVES, "--time=2", "--signal=USR2@90", settings="RESUMABLE=1 RETRIES=1")
    jobs.start("out-of-time", SAVES, "--time=2", "--signal=USR2@90", settings="RESUMABLE=1")
    jobs.start("forwarded", SAVES, "--time=2", "--signal=B:USR2@90", settings="RESUMABLE=1")
    low = ("--qos=low", "--gres=gpu:4", "--nodelist=node004")
    jobs.start("preempted", SAVES, *low, settings="RESUMABLE=1")
    jobs.start("terminated", WAITS, *low)
    jobs.start("requeued", SAVES, settings="RESUMABLE=1")
    jobs.start("requeued-deaf", WAITS)
    jobs.start("cancelled", SAVES, settings="RESUMABLE=1 RETRIES=3")
    jobs.start("cancelled-deaf", IGNORES, settings="RESUMABLE=1 RETRIES=3")
    jobs.start("big", "python3 -c 'b = bytearray(10**9); b[::4096] = b[::4096]'")
    jobs.start("forbidden", "exit 9", "--no-requeue", settings="RETRIES=1")
    element = "[ $SLURM_ARRAY_TASK_ID = 0 ] || [ $NEMORUN_ATTEMPT = 2 ]"
    for name in ("e-0", "e-1"):
        jobs.prepare(name, element, "RETRIES=1")
    (jobs.folder / "array.tasks").write_text("e-0\ne-1\n")
    (jobs.folder / "tasks" / "array" / "logs").mkdir(parents=True)
    jobs.own()
    jobs.sbatch("array", "--array=0-1", script="array")
    yield jobs
    jobs.clean()


def test_cancelling_resumes_nothing(jobs: Jobs) -> None:
    """Ranks that are told to stop save and ask to be resumed, whoever told them."""
    for name in ("cancelled", "cancelled-deaf", "preempted", "terminated"):
        eventually((jobs.folder / f"tasks/{name}/logs/attempt-1/rank-0.log").exists, 20)
    jobs.preempt("node004")  # for the test below: it waits for long
    jobs.as_alice(f"scancel {jobs.ids['cancelled']} {jobs.ids['cancelled-deaf']}")
    assert jobs.wait("cancelled") == ["began 1", "ended 1 cancelled 75"]
    assert jobs.wait("cancelled-deaf") == ["began 1", "ended 1 cancelled 143"]
    assert jobs.state("cancelled") == jobs.state("cancelled-deaf") == "CANCELLED"
    saved = jobs.folder / "tasks" / "cancelled" / "logs" / "attempt-1" / "rank-0.log"
    assert "saved" in saved.read_text()


def test_out_of_memory(jobs: Jobs) -> None:
    if not jobs.rig.facts["settings"]["cgroup"]:
        pytest.skip("no version 1 cgroups here, so that Slurm limits no memory")
    assert jobs.wait("big")[1].startswith("ended 1 out-of-memory ")


def test_where_slurm_starts_no_job_again(jobs: Jobs) -> None:
    assert jobs.wait("forbidden") == ["began 1", "requeued 1 failed 9", "ended 1 failed 9"]
    assert "Slurm refuses to start job" in jobs.log("forbidden")


def test_a_failure_is_retried_and_a_dependent_waits(jobs: Jobs) -> None:
    secrets = jobs.folder / "tasks" / "retried" / "secrets"
    eventually(lambda: "requeued 1 failed 1" in jobs.journal("retried"), 30)
    job = jobs.ids["retried"]
    kept = jobs.as_alice(
        f"scontrol show job {job}; scontrol write batch_script {job} -;"
        f" sacct -j {job} --env-vars; sacct -j {job} --batch-script"
    )
    assert "source ./job.sh" in kept and "SLURM_SUBMIT_DIR" in kept and "hidden-words" not in kept
    assert jobs.wait("retried") == ["began 1", "requeued 1 failed 1", "began 2", "ended 2 succeeded 0"]
    assert jobs.wait("child") == ["began 1", "ended 1 succeeded 0"]
    assert not secrets.exists()


def test_retries_end(jobs: Jobs) -> None:
    assert jobs.wait("hopeless") == ["began 1", "requeued 1 failed 4", "began 2", "ended 2 failed 5"]
    assert jobs.state("hopeless") == "FAILED"
    eventually(lambda: jobs.state("orphan") == "CANCELLED", 30)
    assert jobs.journal("orphan") == []


def test_elements_of_an_array_are_started_again_one_by_one(jobs: Jobs) -> None:
    assert jobs.wait("e-0") == ["began 1", "ended 1 succeeded 0"]
    assert jobs.wait("e-1") == ["began 1", "requeued 1 failed 1", "began 2", "ended 2 succeeded 0"]
    began = (jobs.folder / "tasks" / "e-1" / "journal").read_text().split()[3]
    assert began == f"{jobs.ids['array']}_1"


def test_a_warning_before_the_time_limit_costs_a_retry(jobs: Jobs) -> None:
    assert jobs.wait("warned") == ["began 1", "requeued 1 time-limit 75", "began 2", "ended 2 succeeded 0"]
    assert jobs.wait("out-of-time") == ["began 1", "ended 1 time-limit 75"]


def test_a_warning_to_the_batch_script_is_handed_on(jobs: Jobs) -> None:
    assert jobs.wait("forwarded") == ["began 1", "ended 1 time-limit 75"]


def test_a_preemption_costs_no_retry(jobs: Jobs) -> None:
    assert jobs.wait("preempted") == ["began 1", "requeued 1 preempted 75", "began 2", "ended 2 succeeded 0"]
    assert jobs.wait("terminated") == [
        "began 1",
        "requeued 1 preempted 143",
        "began 2",
        "ended 2 succeeded 0",
    ]


def test_a_requeue_by_somebody_is_no_preemption(jobs: Jobs) -> None:
    """And free, too: neither of them has a retry."""
    for name, code in (("requeued", 75), ("requeued-deaf", 143)):
        eventually((jobs.folder / f"tasks/{name}/logs/attempt-1/rank-0.log").exists, 20)
        jobs.rig("exec", "ctl", "scontrol", "requeue", jobs.ids[name])
        ends = [f"requeued 1 requeued {code}", "began 2", "ended 2 succeeded 0"]
        assert jobs.wait(name) == ["began 1", *ends]


@pytest.mark.slow
def test_hard_limits_and_lost_nodes(rig: Rig, request: pytest.FixtureRequest) -> None:
    """Together, for the limit takes a minute."""
    jobs = Jobs(rig)
    request.addfinalizer(jobs.clean)
    limit = ("--time=1", "--nodelist=node001")
    jobs.start("limited", WAITS, *limit, settings="RETRIES=1")
    jobs.start("limited-deaf", IGNORES, *limit, settings="RETRIES=1")
    jobs.start("out-of-time", WAITS, *limit)
    jobs.start("first", WAITS, "--exclude=node001,node002")
    jobs.start("other", WAITS, "--nodes=2", "--ntasks=2", "--exclude=node001")

    def nodes(name: str) -> str:
        """Those of the last attempt."""
        journal = jobs.folder / "tasks" / name / "journal"
        began = [line for line in journal.read_text().splitlines() if " began " in line]
        return began[-1].split()[-1]

    def ends_elsewhere(name: str, node: str) -> None:
        events = jobs.wait(name)
        assert events[:2] == ["began 1", f"lost 1 node-failure {node}"], name
        assert events[-1] == "ended 2 succeeded 0" and node not in nodes(name)

    # A node of two fails.
    eventually(lambda: jobs.journal("first") and jobs.journal("other"), 20)
    node = next(node for node in nodes("other").split(",")[::-1] if node != nodes("first"))
    rig("exec", "ctl", "scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    try:
        ends_elsewhere("other", node)
    finally:
        # Not before: if the script was killed, its next start asks which node is down.
        rig("exec", "ctl", "scontrol", "update", f"nodename={node}", "state=resume")

    expected = ["began 1", "requeued 1 time-limit 143", "began 2", "ended 2 succeeded 0"]
    assert jobs.wait("limited") == jobs.wait("limited-deaf") == expected
    assert jobs.wait("out-of-time") == ["began 1", "ended 1 time-limit 143"]

    # The power of the batch script's node is cut; Slurm misses the job when it is there again.
    node = nodes("first")
    rig("crash", node)
    rig("boot", node)
    ends_elsewhere("first", node)
