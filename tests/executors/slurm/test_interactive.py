"""Shells on a real cluster, driven as a person does, by the command line and on a terminal."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nemorun.executors.slurm import SlurmExecutor, interactive
from nemorun.executors.slurm.cluster import Cluster
from nemorun.executors.slurm.interactive import _interactive
from nemorun.executors.slurm.paths import remote_run_dir
from nemorun.job import JobSpec, Resources
from nemorun.remote import connect, terminal
from nemorun.remote.errors import ConnectionLost
from nemorun.remote.openssh import OpenSSHConnection
from tests.executors.slurm.conftest import SlurmBench
from tests.slurm_rig import Rig, eventually
from tests.terminals import PROMPT, Terminal

JOBS = """\
import os
import nemorun as run

def work():
    print(f"rank {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')} is new: {os.environ['MINE']}")

@run.factory
def job():
    return run.Partial(work)
"""
SETTINGS = """\
executors:
  slurm:
    type: slurm
    tunnel: alice@login
    transport: {transport}
    ssh_config: {config}
    job_dir: ~/{job_dir}
    time: "10"
    mem: "100"
    env_vars: {{MINE: "it's mine"}}
    setup: ["set -eu", "PS1='{prompt}'"]
"""


class Desk:
    """A workspace with a terminal, and what it has in the queue."""

    def __init__(self, rig: Rig, folder: Path, transport: str) -> None:
        self.rig, self.folder = rig, folder
        self.job_dir = f"nr-shell-{uuid.uuid4().hex[:8]}"
        self._opened: list[Terminal] = []
        (folder / "jobs.py").write_text(JOBS)
        settings = {"transport": transport, "config": rig.config, "job_dir": self.job_dir, "prompt": PROMPT}
        (folder / "nemorun.yaml").write_text(SETTINGS.format(**settings))

    def sit(self, *words: str) -> Terminal:
        self._opened.append(Terminal([sys.executable, "-m", "nemorun", *words]))
        return self._opened[-1]

    def call(self, *words: str) -> tuple[int, str]:
        """Without a terminal: exit code, and what it prints."""
        argv = [sys.executable, "-m", "nemorun", *words]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    def queue(self) -> list[str]:
        """Ids of this desk's jobs."""
        listed = self.rig.on_login("squeue --user=alice --noheader --format='%A %T %Z'")
        return [line.split()[0] for line in listed.splitlines() if self.job_dir in line]

    def clean(self) -> None:
        for opened in self._opened:
            opened.close()
        if jobs := self.queue():
            self.rig.on_login(f"scancel {' '.join(jobs)}")
            eventually(lambda: not self.queue())
        shutil.rmtree(self.rig.home / self.job_dir, ignore_errors=True)


@pytest.fixture(params=["paramiko", "openssh"])
def transport(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def desk_by(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Desk]]:
    sockets = tempfile.mkdtemp(prefix="nr-")  # a short path
    monkeypatch.setenv("XDG_RUNTIME_DIR", sockets)
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.chdir(tmp_path)
    made = []

    def make(transport: str) -> Desk:
        made.append(Desk(rig, tmp_path, transport))
        return made[-1]

    yield make
    for desk in made:
        desk.clean()
    connection = connect("alice@login", transport="openssh", config=rig.config)
    assert isinstance(connection, OpenSSHConnection)
    connection.stop()
    shutil.rmtree(sockets)


@pytest.fixture
def desk(desk_by: Callable[[str], Desk]) -> Desk:
    return desk_by("paramiko")


def test_a_shell_with_the_executors_resources(
    desk_by: Callable[[str], Desk], transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = desk_by(transport)
    monkeypatch.setenv("MY_TOKEN", "$ecret")
    shell = desk.sit("shell", "-e", "slurm", "executor.nodes=2", "--secret", "MY_TOKEN")
    shell.expect("Granted job allocation")
    shell.do("stty size; cat jobs.py | head -n 1; echo $MINE", "30 100\r\nimport os\r\nit's mine")
    shell.do("srun --ntasks=1 --nodes=1 sh -c 'echo \"<$MY_TOKEN>\"'", "<$ecret>")
    shell.resize(132, 43)
    shell.do('until [ "$(stty size)" = "43 132" ]; do :; done; echo resi""zed', "resized")
    shell.do('sh -c \'echo star""ted; exec sleep 600\'; echo ne""ver', "started")
    shell.type("\x03")
    shell.do('echo $(srun sh -c "echo on-\\$SLURM_NODEID" | sort)', "on-0 on-1")
    shell.expect(PROMPT)
    shell.type("exit 7\r")
    assert shell.end() == 7
    assert shell.restored and "never" not in shell.shown
    eventually(lambda: not desk.queue())
    assert list((desk.rig.home / desk.job_dir).rglob("job.sh"))
    assert not list((desk.rig.home / desk.job_dir).rglob("secrets"))


def test_debugging_in_an_allocation_that_stays(desk: Desk) -> None:
    words = ["debug", "jobs.py:job", "-e", "slurm", "executor.ntasks_per_node=2"]
    first = desk.sit(*words)
    first.expect("`run` starts it on all ranks")
    first.do("run", "rank 1 of 2 is new: it's mine")
    first.do('false; echo still he""re', "still here")
    first.expect(PROMPT)
    first.type("exit 3\r")
    assert first.end() == 3
    (job,) = desk.queue()
    assert f"job {job} is kept until" in first.shown and "--release` gives it back" in first.shown
    assert f"`nemorun {' '.join(words)}` comes back to it" in first.shown  # with these resources only

    (desk.folder / "jobs.py").write_text(JOBS.replace("new", "newer"))
    second = desk.sit(*words)
    second.do("run", "of 2 is newer: it's mine")
    second.do("echo $SLURM_JOB_ID; ls -d $NEMORUN_RUN_DIR/run-*/results | wc -l", f"{job}\r\n2")
    second.expect(PROMPT)
    second.type("exit\r")
    assert second.end() == 0

    other = desk.sit(*words, "executor.nodes=2")
    assert other.end() == 2
    assert f"the allocation {job} is kept for 'job' with other resources" in other.shown
    assert desk.call("debug", "jobs.py:job", "--release", "-e", "slurm") == (0, f"given back: job {job}\n")
    eventually(lambda: not desk.queue())
    code, said = desk.call("debug", "jobs.py:job", "--release", "-e", "slurm")
    assert (code, said) == (0, "nothing is kept for 'job'\n")


@pytest.mark.parametrize("verb", ["shell", "debug"])
def test_a_request_that_waits_is_given_back(desk: Desk, verb: str) -> None:
    waiting = desk.sit(verb, "jobs.py:job", "-e", "slurm", "executor.sbatch_args=['--begin=now+1hour']")
    waiting.expect("Pending job allocation")
    assert desk.queue()
    waiting.type("\x03")
    assert waiting.end() == 130 or waiting.code == 1
    assert waiting.restored
    eventually(lambda: not desk.queue())


def test_a_lost_connection_leaves_no_allocation(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "$ecret")
    shell = desk.sit("shell", "-e", "slurm", "--secret", "MY_TOKEN")
    shell.expect(PROMPT)
    desk.rig.on_login(
        f"""for process in $(pgrep -u alice salloc); do
            case $(readlink /proc/$process/cwd) in *{desk.job_dir}*) ;; *) continue ;; esac
            until [ "$(ps -o comm= -p $process)" = sshd ]; do
                process=$(ps -o ppid= -p $process | tr -d ' ')
            done
            kill -KILL $process
        done"""
    )
    assert shell.end() == 2
    assert "the connection was lost" in shell.shown and shell.restored
    eventually(lambda: not desk.queue())
    eventually(lambda: not list((desk.rig.home / desk.job_dir).rglob("secrets")))


@pytest.mark.parametrize("kind", ["shell", "debug"])
def test_a_session_that_never_begins_leaves_no_secret(
    bench: SlurmBench, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The connection breaks when all is ready for it."""
    ready: list[dict[str, str]] = []

    def lost(cluster: Cluster, experiment: str, rc: str, **variables: str) -> int:
        ready.append({**variables, "EXP": experiment, "RC": rc})
        kept = [path.name for path in bench.home.rglob("secrets*")]
        raise ConnectionLost(f"with {kept}", may_have_run=True)

    monkeypatch.setattr(interactive, "_enter", lost)
    monkeypatch.setattr(interactive, "GRACE", 2)
    monkeypatch.setattr(terminal, "require", lambda: 0)
    bench.add(command=("true",), secrets=("KEY",))
    rendered = bench.executor.render(bench.jobs)
    with pytest.raises(ConnectionLost, match=r"with \['secrets\.\w+'\]"):
        if kind == "shell":
            bench.executor.shell(rendered, {"KEY": "x"})
        else:
            bench.executor.debug(rendered, {"KEY": "x"}, "nemorun debug")
    eventually(lambda: not list(bench.home.rglob("secrets*")))
    late = bench.cluster.command("enter.sh", **{"NODE": "", "AGAIN": "", "KEEP": "no", "JOB": "", **ready[0]})
    done = bench.cluster.run(late, retry=False)
    assert (done.returncode, done.stdout) == (1, "") and "the secrets are gone" in done.stderr
    assert not bench.queued()


def test_attaching_to_a_running_task(desk: Desk) -> None:
    words = ["run", "-e", "slurm", "--detach", "--name", "sleeper", "executor.nodes=2"]
    code, said = desk.call(*words, "--env", "THEIRS=a b", "--", "sleep", "6001")
    assert code == 0, said

    def running() -> bool:
        code, said = desk.call("status", "-1", "--json")
        assert code == 0, said
        return bool(json.loads(said)["state"] == "RUNNING")

    eventually(running, 30)
    shell = desk.sit("attach", "-1", "--rank", "1")
    shell.do(
        'echo "$NEMORUN_TASK, $THEIRS, $SLURM_NNODES, $(pgrep -f "^sleep 6001"  | wc -l)"', "sleep, a b, 2, 1"
    )
    (job,) = desk.queue()
    nodes = desk.rig.on_login(
        f"scontrol show hostnames $(squeue --noheader --jobs={job} --format=%N)"
    ).split()
    shell.do("echo on:$(hostname -s)", f"on:{nodes[1]}")
    shell.expect(PROMPT)
    shell.type("exit 5\r")
    assert shell.end() == 5
    assert desk.queue() == [job]
    assert "has ranks 0 to 1" in desk.call("attach", "-1", "--rank", "2")[1]
    assert desk.call("cancel", "-1", "--yes")[0] == 0
    code, said = desk.call("attach", "-1")
    assert code == 2 and "nothing to attach to: task 'sleep'" in said and "cancelled" in said


def test_the_job_to_attach_to_is_found_where_its_submission_was_never_confirmed(bench: SlurmBench) -> None:
    bench.add(command=("sleep", "600"))
    handle = bench.submit()["task"]
    command = bench.cluster.command("attach.sh", RUN=remote_run_dir(f"{bench.id}.task", bench.ref().run_dir))
    begun = eventually(
        lambda: "1 node" in (said := bench.cluster.run(command, retry=True).stdout) and said, 30
    )
    assert begun.split()[:3] == [handle, "RUNNING", "1"]
    (bench.run_dir() / "job").unlink()
    assert bench.cluster.run(command, retry=True).stdout == ""


def test_without_a_terminal_nothing_is_taken(desk: Desk) -> None:
    code, said = desk.call("shell", "-e", "slurm")
    assert code == 2 and "needs a terminal" in said
    assert not (desk.rig.home / desk.job_dir).exists()


def test_values_are_checked_before_anything_connects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nemorun.yaml").write_text("executors: {slurm: {type: slurm, tunnel: nowhere.invalid}}\n")
    from nemorun.cli.main import invoke

    for verb in (["shell"], ["debug", "tiny_llama_pretrain"]):
        assert invoke([*verb, "-e", "slurm", "executor.time=banana"]) == 2


@pytest.mark.parametrize("words", [["shell"], ["debug", "tiny_llama_pretrain"]])
def test_this_machine_is_the_place(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    from nemorun.cli.main import invoke

    assert invoke(words) == 2
    assert "the shell that you are in is the place already" in capsys.readouterr().err


@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
def test_ranks_print_to_the_terminal(launcher: str) -> None:
    job = JobSpec("t", "id.t", "/x/e-id/tasks/t", Resources(2, 2), task="/x/e-id/tasks/t/task.yaml")
    (unit,) = SlurmExecutor(launcher=launcher, tunnel="there").render([job]).units
    changed = _interactive(unit, job)
    assert "rank-%t.log" in unit.script or "NEMORUN_RANK_LOGS" in unit.script
    assert "rank-%t.log" not in changed and "NEMORUN_RANK_LOGS" not in changed and "job.sh\n" not in changed
    assert subprocess.run(["bash", "-n", "-c", changed]).returncode == 0
    assert "exec srun \\\n        --kill-on-bad-exit=1 \\\n        --chdir=" in changed
