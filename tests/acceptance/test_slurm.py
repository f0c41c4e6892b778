"""What users of other launchers suffer from on Slurm: one test a complaint, with the real command line.

The headings are those of the complaints. What stands here goes from `nemorun run` on this machine to jobs on
the rig's nodes; what concerns a part alone stands with that part (`tests/executors/slurm`, `tests/remote`).
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.slurm_rig import Rig, eventually

JOBS = """
import os, sys, time
from pathlib import Path
import nemorun as run


def work(seconds: float = 0, n: int = 0):
    with open(Path(os.environ["NEMORUN_RUN_DIR"]) / "starts", "a") as file:
        file.write("started\\n")
    print("work", n, flush=True)
    time.sleep(seconds)
    return {"n": n, "where": os.uname().nodename, "python": sys.executable}


def environment():
    return {k: v for k, v in os.environ.items() if k.lower().startswith(("my_", "slurm_cpu_bind", "sbatch"))}


def boom():
    raise ValueError("the very reason")


def eat(megabytes: int):
    block = bytearray(megabytes << 20)
    for at in range(0, len(block), 4096):
        block[at] = 1
"""

SETTINGS = """
executors:
  rig: {{type: slurm, tunnel: login, ssh_config: {config}, job_dir: ~/accept, time: 10, mem: 200M}}
  jump: {{type: slurm, tunnel: login-jump, ssh_config: {config}, job_dir: ~/accept, time: 10, mem: 200M}}
  far: {{type: slurm, tunnel: no-such-host.invalid, time: 10}}
"""


class Laptop:
    """A folder with a workspace, and the command line in it."""

    def __init__(self, folder: Path, rig: Rig) -> None:
        self.folder, self.rig = folder, rig

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "nemorun", *words],
            **{
                "cwd": self.folder,
                "text": True,
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                **options,
            },
        )

    def __call__(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        process = self.start(*words, **options)
        out, err = process.communicate(timeout=180)
        assert "Traceback" not in err or "the very reason" in err, err
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def status(self, which: str = "-1") -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("status", which, "--json").stdout)
        return found

    def task(self, which: str = "-1") -> dict[str, Any]:
        (task,) = self.status(which)["tasks"]
        return task

    def value(self, *words: str, **options: Any) -> Any:
        """What the task returned."""
        done = self("run", *words, **options)
        assert done.returncode == 0, done.stderr
        return json.loads((Path(self.task()["run_dir"]) / "result.json").read_text())

    def starts(self, identity: str) -> int:
        """How often the experiment's tasks have started, by what they wrote on the cluster."""
        files = (self.rig.home_of("alice") / "accept" / "experiments").glob(f"*-{identity}/tasks/*/starts")
        return sum(len(file.read_text().splitlines()) for file in files)

    def jobs(self, identity: str) -> int:
        """How many jobs Slurm has had of it in the last minutes."""
        listed = self.rig("exec", "ctl", "squeue", "-a", "-h", "-t", "all", "-o", "%i %j").splitlines()
        return sum(line.endswith(f".{identity}") for line in listed)


@pytest.fixture
def laptop(tmp_path: Path, rig: Rig) -> Laptop:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "jobs.py").write_text(JOBS)
    (folder / "nemorun.yaml").write_text(SETTINGS.format(config=rig.config))
    return Laptop(folder, rig)


# Scripts


def test_environment_survives_and_nothing_of_a_surrounding_allocation_leaks(laptop: Laptop) -> None:
    tricky = {"MY_A": "1,2", "my_b": 'it\'s "x" $HOME `id`', "MY_C": "two\nlines ", "MY_D": "ümläut=%j"}
    words = [word for name, value in tricky.items() for word in ("--env", f"{name}={value}")]
    around = {"SLURM_CPU_BIND": "verbose,mask_cpu:0x1", "SBATCH_PARTITION": "nonsense", "SLURM_JOB_ID": "7"}
    found = laptop.value("jobs.py:environment", "-e", "rig", *words, env={**os.environ, **around})
    assert {name: found.get(name) for name in tricky} == tricky
    assert found.get("SLURM_CPU_BIND") != around["SLURM_CPU_BIND"] and "SBATCH_PARTITION" not in found


def test_a_secret_stands_in_no_script_and_no_record(laptop: Laptop) -> None:
    value = "hunter2-9c1f"
    command = ("run", "-e", "rig", "--secret", "MY_TOKEN", "--", "sh", "-c", "echo ${#MY_TOKEN}")
    done = laptop(*command, env={**os.environ, "MY_TOKEN": value})
    assert done.returncode == 0 and done.stdout.strip() == str(len(value)), done.stderr
    for root in (Path(os.environ["NEMORUN_HOME"]), laptop.rig.home_of("alice"), laptop.folder):
        found = subprocess.run(["grep", "-rl", "--", value, str(root)], capture_output=True, text=True)
        assert found.stdout == ""
    handle = laptop.task()["handle"]
    shown = laptop.rig("exec", "ctl", "scontrol", "show", "job", "-dd", handle)
    shown += laptop.rig("exec", "ctl", "sacct", "-j", handle, "-B")
    shown += laptop.rig("exec", "ctl", "sacct", "-j", handle, "--env-vars")
    assert handle in shown and value not in shown


@pytest.mark.parametrize(
    "override",
    ["nodes=-3", "nodes=x", "time=banana", "mem=lots", "gpus_per_task=0.5", "exclusive=maybe", "ndoes=2"],
)
def test_a_bad_value_is_refused_before_anything_connects(laptop: Laptop, override: str) -> None:
    done = laptop("run", "jobs.py:work", "-e", "far", f"executor.{override}")
    assert done.returncode == 2 and override.partition("=")[0] in done.stderr
    assert "no-such-host" not in done.stderr and laptop("list", "--json").stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("override", "listed"),
    [
        ("partition=bach", ["bach", "did you mean 'batch'", "interactive"]),
        ("qos=nromal", ["nromal", "normal", "low", "high"]),
        ("account=product", ["product", "research"]),
        ("time=2-00:00:00", ["partition", "batch", "4:00:00"]),
        ("nodes=500", ["500", "batch"]),
        ("gpus_per_node=9", ["9", "8"]),
    ],
)
def test_what_the_cluster_will_not_do_is_refused_at_once(
    laptop: Laptop, override: str, listed: list[str]
) -> None:
    done = laptop("run", "jobs.py:work", "-e", "rig", f"executor.{override}")
    assert done.returncode == 2, done.stderr
    for words in listed:
        assert words in done.stderr, done.stderr
    assert laptop.task()["reason"] == "never submitted"


def test_no_time_limit_is_said_to_wait_longer(laptop: Laptop) -> None:
    done = laptop("run", "jobs.py:work", "-e", "far", "executor.time=UNLIMITED", "--dry-run")
    assert done.returncode == 0 and "UNLIMITED" in done.stderr and "backfill" in done.stderr


# SSH


def test_a_run_through_the_bastion(laptop: Laptop) -> None:
    found = laptop.value("jobs.py:work", "n=5", "-e", "jump")
    assert found["n"] == 5 and re.fullmatch(r"node\d+", found["where"])


def test_a_hundred_tasks_in_parallel_are_all_submitted(laptop: Laptop) -> None:
    """NeMo-Run dies at the tenth session: each task takes a channel of its own there."""
    values = ",".join(map(str, range(100)))
    command = ("run", "jobs.py:work", "-e", "rig", "executor.array=false", "executor.mem=10M")
    done = laptop(*command, "--sweep", f"n={values}", "--yes", "--detach")
    assert done.returncode == 0, done.stderr
    identity = done.stdout.strip()
    tasks = laptop.status(identity)["tasks"]
    assert len({task["handle"] for task in tasks}) == 100
    assert laptop("cancel", identity, "--yes").returncode == 0
    eventually(lambda: laptop.status(identity)["state"] in ("CANCELLED", "SUCCEEDED"), 60)


# Slurm: the reasons


def test_each_end_has_its_own_words(laptop: Laptop) -> None:
    def run_detached(*words: str) -> str:
        done = laptop("run", *words, "-e", "rig", "--detach")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    wanted = {
        run_detached("jobs.py:boom"): ("non-zero exit code", "the very reason"),
    }
    if laptop.rig.facts["settings"]["cgroup"]:
        wanted[run_detached("jobs.py:eat", "megabytes=400", "executor.mem=100M")] = ("out of memory", "")
    waits = run_detached("jobs.py:work", "executor.sbatch_args=['--begin=now+1hour']")
    task = eventually(lambda: laptop.task(waits), 30)
    assert task["state"] == "PENDING" and "start" in task["message"], task
    for identity, (reason, words) in wanted.items():
        task = eventually(lambda identity=identity: ended(laptop.task(identity)), 150)
        assert task["state"] == "FAILED" and task["reason"] == reason and words in task["message"], task
    laptop("cancel", waits, "--yes")


def ended(task: dict[str, Any]) -> dict[str, Any] | None:
    return task if task["state"] in ("SUCCEEDED", "FAILED", "CANCELLED") else None


def settled(task: dict[str, Any]) -> dict[str, Any] | None:
    return task if "is being submitted" in task["message"] else ended(task)


def test_a_chain_stops_at_what_failed(laptop: Laptop) -> None:
    (laptop.folder / "chain.py").write_text(
        "import nemorun as run\nfrom jobs import boom, work\n"
        "from nemorun.executors.configured import executor\n\n"
        "if __name__ == '__main__':\n"
        "    chain = run.Experiment('chain', executor=executor('rig'))\n"
        "    first = chain.add(boom)\n"
        "    second = chain.add(run.Partial(work), name='second', dependencies=[first])\n"
        "    chain.add(run.Partial(work), name='third', dependencies=[second])\n"
        "    chain.run()\n"
    )
    done = subprocess.run(
        [sys.executable, "chain.py"], cwd=laptop.folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and "the very reason" in done.stderr
    status = laptop.status()
    reasons = {task["name"]: task["reason"] for task in status["tasks"]}
    assert reasons["second"] == reasons["third"] == "a dependency failed"
    assert laptop.starts(status["id"]) == 0


# Reconnecting


def test_every_command_works_after_the_launcher_died(laptop: Laptop) -> None:
    launcher = laptop.start("run", "jobs.py:work", "seconds=4", "n=7", "-e", "rig")
    assert launcher.stderr is not None
    assert "submitted to slurm" in launcher.stderr.readline()
    launcher.kill()
    launcher.communicate()
    identity = laptop.status()["id"]
    done = laptop("logs", "-f", identity)
    assert done.returncode == 0 and done.stdout == "work 7\n"
    assert laptop.task(identity)["state"] == "SUCCEEDED"
    assert (laptop.starts(identity), laptop.jobs(identity)) == (1, 1)


def test_a_launcher_killed_at_any_moment_submits_once_or_not(laptop: Laptop) -> None:
    """And the next command says which."""
    seen = set()
    for tenths in (2, 4, 5, 6, 7, 8, 10, 13):
        launcher = laptop.start("run", "jobs.py:work", "-e", "rig", "--name", f"kill{tenths}")
        try:
            launcher.wait(tenths / 10)
        except subprocess.TimeoutExpired:
            launcher.send_signal(signal.SIGKILL)
        launcher.communicate()
    for one in json.loads(laptop("list", "--json").stdout):
        # For two minutes it may still be on its way: what the dead launcher had sent, the network delivers.
        task = eventually(lambda one=one: settled(laptop.task(one["id"])), 60)
        seen.add(task["reason"] or task["state"])
        expected = (1, 1) if task["state"] == "SUCCEEDED" else (0, 0)
        assert (laptop.starts(one["id"]), laptop.jobs(one["id"])) == expected, task
    assert seen <= {"SUCCEEDED", "PENDING"}


def test_logs_survive_a_lost_connection_and_come_once(laptop: Laptop) -> None:
    lines = 40
    script = f"for i in $(seq {lines}); do echo line $i; sleep 0.1; done"
    output = laptop.folder / "output"
    with output.open("w") as file:
        launcher = laptop.start("run", "-e", "rig", "--", "sh", "-c", script, stdout=file)
    eventually(lambda: "line 1\n" in output.read_text(), 30)
    laptop.rig("exec", "login", "pkill", "-KILL", "-u", "alice", "sshd")
    assert launcher.wait(120) == 0
    assert output.read_text() == "".join(f"line {number}\n" for number in range(1, lines + 1))


def test_an_interrupt_cancels_and_leaves_no_job(laptop: Laptop) -> None:
    launcher = laptop.start("run", "jobs.py:work", "seconds=600", "-e", "rig")
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == "work 0\n"
    launcher.send_signal(signal.SIGINT)
    _, err = launcher.communicate(timeout=300)
    assert launcher.returncode == 130 and "cancelling" in err
    task = eventually(lambda: ended(laptop.task()), 60)
    assert task["state"] == "CANCELLED"
    identity = laptop.status()["id"]
    eventually(lambda: identity not in laptop.rig("exec", "ctl", "squeue", "-h", "-o", "%j"), 30)


def test_code_that_runs_is_the_code_that_was_submitted(laptop: Laptop) -> None:
    done = laptop("run", "jobs.py:work", "n=1", "-e", "rig", "executor.setup=['sleep 2']", "--detach")
    changed = JOBS.replace('print("work", n', 'print("changed", n')
    (laptop.folder / "jobs.py").write_text(changed)
    followed = laptop("logs", "-f", done.stdout.strip())
    assert followed.stdout == "work 1\n"
    again = laptop("run", "jobs.py:work", "n=1", "-e", "rig")
    assert again.stdout == "changed 1\n"


def test_a_script_without_a_main_guard_submits_once(laptop: Laptop) -> None:
    (laptop.folder / "plain.py").write_text(
        "import nemorun as run\nfrom nemorun.executors.configured import executor\n\n"
        "def hello(): print('hello from', __name__ != '__main__')\n\n"
        "run.run(run.Partial(hello), executor=executor('rig'))\n"
    )
    done = subprocess.run(
        [sys.executable, "plain.py"], cwd=laptop.folder, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "hello from True\n"), done.stderr
    assert len(json.loads(laptop("list", "--json").stdout)) == 1


def test_a_script_and_a_command_run_from_the_frozen_code(laptop: Laptop) -> None:
    (laptop.folder / "job.sh").write_text("echo script $1; cat data/words.txt\n")
    (laptop.folder / "data").mkdir()
    (laptop.folder / "data" / "words.txt").write_text("with its data\n")
    done = laptop("run", "job.sh", "-e", "rig", "--", "one two")
    assert (done.returncode, done.stdout) == (0, "script one two\nwith its data\n"), done.stderr
    (laptop.folder / "script.py").write_text(
        "import sys, jobs, nemorun as run\nprint(sys.argv[1:], run.Resources(), jobs.__file__ != '')\n"
    )
    done = laptop("run", "script.py", "-e", "rig", "--", "it's", "$HOME")
    assert done.stdout.startswith("""["it's", '$HOME'] Resources(nodes=1,"""), done.stderr + done.stdout
    done = laptop("run", "-e", "rig", "--", "sh", "-c", "exit 3")
    assert done.returncode == 1 and "ended with 3" in done.stderr
