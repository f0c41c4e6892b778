"""The supervisors of a task's pods, as processes of this machine: they start, fail and go on together."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nemorun.job import JobState, Resources
from tests.executors.conftest import PATIENCE, wait_until
from tests.k8s_rig import K8sRig

from .conftest import K8sBench

MAIN = "import sys; from nemorun.executors.kubernetes.pod import main; sys.exit(main())"
#: What ranks run, in place of nemorun's worker: what the words say, in the attempt and rank that they name.
RANK = """
import os, signal, sys, time
from pathlib import Path
attempt, rank = os.environ["NEMORUN_ATTEMPT"], os.environ.get("RANK", "0")
print("started", flush=True)
for word in sys.argv[1:]:
    when, what = word.split(":", 1)
    if when in (f"{attempt}.{rank}", f"{attempt}.*"):
        exec(what)
"""
#: A task of one rank.
ALONE = {"NEMORUN_NODES": "1", "NEMORUN_RANKS": "1", "NEMORUN_DISTRIBUTED": ""}


class Pod:
    """The supervisor of one pod."""

    def __init__(self, folder: Path, node: int, env: dict[str, str], words: tuple[str, ...]) -> None:
        number = len(list(folder.glob("pod-*.log")))
        self.log, self.report = folder / f"pod-{number}.log", folder / f"report-{number}"
        own = {"NEMORUN_NODE": str(node), "NEMORUN_REPORT": str(self.report)}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", MAIN, *words],
                env={**os.environ, **env, **own},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def lose(self) -> None:
        """As its machine does: all at once."""
        ranks = re.findall(r"ready (\d+)", self.text)
        self.process.kill()
        self.process.wait()
        for rank in ranks:
            os.kill(int(rank), signal.SIGKILL)

    @property
    def text(self) -> str:
        return self.log.read_text()

    def says(self, text: str) -> None:
        wait_until(lambda: text in self.text)

    def ends_with(self, code: int) -> None:
        assert self.process.wait(PATIENCE) == code, self.text


Start = Callable[..., Pod]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start(node, *words)`: a pod of a task with two pods with two ranks each."""
    rank = tmp_path / "rank.py"
    rank.write_text(RANK)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    env = {
        "NEMORUN_NODES": "2",
        "NEMORUN_RANKS": "2",
        "NEMORUN_DISTRIBUTED": "1",
        "NEMORUN_HOST": "localhost",
        "NEMORUN_PORT": str(port + 1),
        "NEMORUN_TOKEN": "abcd2345.train",
        "NEMORUN_RUN_DIR": str(tmp_path / "run"),
        "NEMORUN_LIBRARY": str(rank),
    }
    pods: list[Pod] = []

    def start(node: int, *words: str, **more: str) -> Pod:
        pods.append(Pod(tmp_path, node, {**env, **more}, words))
        return pods[-1]

    yield start
    for pod in pods:
        pod.process.kill()
        pod.process.wait()


def test_ranks_start_together_and_know_their_places(start: Start, tmp_path: Path) -> None:
    words = [
        "1.*:print(*(os.environ[n] for n in ('LOCAL_RANK', 'NODE_RANK', 'WORLD_SIZE', 'MASTER_ADDR')))",
        "1.3:print('no end', end='')",
    ]
    second = start(1, *words)
    second.says("nemorun: pod 1 of 2 waits for the others\n")
    first = start(0, *words)
    first.ends_with(0)
    second.ends_with(0)
    assert "nemorun: attempt 1\n" in first.text
    assert "[rank 0] 0 0 4 localhost\n" in first.text and "[rank 1] 1 0 4 localhost\n" in first.text
    assert "[rank 2] 0 1 4 localhost\n" in second.text and "[rank 3] no end\n" in second.text
    assert (tmp_path / "run/logs/attempt-1/rank-3.log").read_text() == "started\n1 1 4 localhost\nno end"
    assert json.loads(first.report.read_text()) == {"attempt": 1, "rank": 0, "exit_code": 0, "error": None}


def test_only_the_pod_that_fails_first_ends(start: Start) -> None:
    words = ["1.3:sys.exit(3)", "1.0:time.sleep(999)", "1.1:time.sleep(999)", "1.2:time.sleep(999)"]
    first, second = start(0, *words), start(1, *words)
    second.ends_with(3)
    assert json.loads(second.report.read_text())["rank"] == 3
    first.says("starts again")
    again = start(1, *words)
    again.ends_with(0)
    first.ends_with(0)
    assert first.text.count("nemorun: attempt") == 2 and "nemorun: attempt 2\n" in again.text


def test_the_first_failure_counts_where_others_follow(start: Start) -> None:
    words = ["1.0:time.sleep(0.3); sys.exit(1)", "1.2:sys.exit(7)", "1.3:time.sleep(999)"]
    first, second = start(0, *words), start(1, *words)
    second.ends_with(7)
    first.says("starts again")
    assert first.process.poll() is None


@pytest.mark.parametrize("killed", [0, 1])
def test_a_lost_pod_is_waited_for(start: Start, killed: int) -> None:
    words = ["1.*:print('ready', os.getpid(), flush=True); time.sleep(999)"]
    pods = [start(0, *words), start(1, *words)]
    for pod in pods:
        wait_until(lambda pod=pod: pod.text.count("] ready") == 2)
    pods[killed].lose()
    other = pods[1 - killed]
    other.says("starts again: another pod has ended or was lost")
    start(killed, *words).ends_with(0)
    other.ends_with(0)


#: A rank that is told to stop lets the others know; all of them save their state, some take longer.
SAVING = """1.*:
stopped = Path(os.environ["NEMORUN_RUN_DIR"], "stopped")
signal.signal(signal.SIGTERM, lambda *_: (print("told", flush=True), stopped.touch()))
print("ready", flush=True)
while not stopped.exists():
    time.sleep(0.01)
time.sleep(1.5 * (os.environ["NODE_RANK"] != SOON))
print("saved", flush=True)
sys.exit(75)
"""


@pytest.mark.parametrize("told", [0, 1])
def test_who_is_told_to_stop_saves_and_is_resumed(start: Start, told: int) -> None:
    saving = SAVING.replace("SOON", f"'{told}'")
    pods = [start(0, saving), start(1, saving)]
    for pod in pods:
        wait_until(lambda pod=pod: pod.text.count("] ready") == 2)
    pods[told].process.send_signal(signal.SIGTERM)
    pods[told].ends_with(75)
    other = pods[1 - told]
    other.says("starts again")
    assert other.text.count("] saved") == 2 and "] told" not in other.text
    start(told, saving).ends_with(0)
    other.ends_with(0)


def test_told_to_stop_while_waiting(start: Start) -> None:
    pod = start(1)
    pod.says("waits for the others")
    pod.process.send_signal(signal.SIGTERM)
    pod.ends_with(75)


@pytest.mark.parametrize(
    ("node", "message"), [(0, "pods 1 of 2 are not there"), (1, "the pod localhost is not there")]
)
def test_waiting_has_an_end(start: Start, node: int, message: str) -> None:
    pod = start(node, NEMORUN_START_TIMEOUT="0.2")
    pod.ends_with(1)
    assert message in pod.text


def test_one_pod_alone(start: Start, tmp_path: Path) -> None:
    pod = start(0, "1.0:sys.exit(75)", "2.0:os.kill(os.getpid(), 9)", **ALONE)
    pod.ends_with(137)
    (tmp_path / "run/result.json").write_text('{"loss": 1.5}')
    pod = start(0, "3.0:print('RANK' in os.environ)", **ALONE)
    pod.ends_with(0)
    assert "nemorun: attempt 3\n[rank 0] started\n[rank 0] False\n" in pod.text
    assert json.loads(pod.report.read_text())["result"] == {"loss": 1.5}


#: A rank that needs a while to save its state.
SLOW = """1.*:
signal.signal(signal.SIGTERM, lambda *_: print("told", flush=True))
print("ready", flush=True)
while not Path(os.environ["NEMORUN_RUN_DIR"], "go").exists():
    time.sleep(0.01)
Path(os.environ["NEMORUN_RUN_DIR"], "saved").touch()
sys.exit(75)
"""


def test_the_next_pod_waits_until_this_one_has_saved(start: Start, tmp_path: Path) -> None:
    """Clusters start it as soon as they tell this one to stop."""
    words = (SLOW, "2.*:print('saved', Path(os.environ['NEMORUN_RUN_DIR'], 'saved').exists(), flush=True)")
    first = start(0, *words, **ALONE)
    first.says("] ready")
    first.process.send_signal(signal.SIGTERM)
    first.says("] told")
    second = start(0, *words, **ALONE)
    second.says("waits for the pod before this one")
    (tmp_path / "run/go").touch()
    first.ends_with(75)
    second.ends_with(0)
    assert "nemorun: attempt 2\n" in second.text and "] saved True\n" in second.text


def test_a_pod_that_was_killed_holds_up_nobody(start: Start) -> None:
    first = start(0, "1.*:print('ready', os.getpid(), flush=True); time.sleep(999)", **ALONE)
    first.says("] ready")
    first.lose()
    second = start(0, **ALONE)
    second.ends_with(0)
    assert "waits" not in second.text


def test_nobody_waits_for_ever_for_the_pod_before(start: Start) -> None:
    first = start(0, "1.*:print('ready', os.getpid(), flush=True); time.sleep(999)", **ALONE)
    first.says("] ready")
    second = start(0, **ALONE, NEMORUN_GRACE_PERIOD="-30")
    second.ends_with(0)
    assert "should be gone" in second.text
    first.lose()


CHECKS = """
import json, os, sys
from pathlib import Path
import nemorun, jobs
at = {name: os.environ.get(name) for name in ("HOME", "RANK", "WORLD_SIZE", "NEMORUN_CODE", "AWKWARD", "KEY")}
at |= {"cwd": os.getcwd(), "user": os.getuid(), "jobs": jobs.__file__, "words": sys.argv[1:]}
Path(os.environ["NEMORUN_RESULTS_DIR"], f"rank-{at['RANK']}").write_text(json.dumps(at))
print("seen", at["RANK"], flush=True)
if at["RANK"] == "3" and os.environ["NEMORUN_ATTEMPT"] == "1":
    sys.exit(7)
"""


def test_the_start_of_real_pods(k8s: Callable[..., K8sBench], k8s_node: K8sRig, tmp_path: Path) -> None:
    """Without a root user, on a file system that cannot be written to; and one pod that is started again."""
    awkward = 'it\'s "$HOME" $(HOSTNAME) $$ ü\n'
    shared = Path(tempfile.mkdtemp(prefix="nemorun-", dir="/tmp"))
    shared.chmod(0o777)
    code = tmp_path / f"{'0' * 64}.tar.gz"
    with tarfile.open(code, "w:gz") as tar:
        for name, text in (("src/jobs.py", b""), ("here/checks.py", CHECKS.encode())):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    bench = k8s(
        node_selector={"rig/kind": "real"},
        security_context={"runAsUser": 4711, "runAsNonRoot": True, "readOnlyRootFilesystem": True},
        volumes=[f"hostpath:{shared}:/shared"],
        run_dir="/shared/runs",
        env_vars={"AWKWARD": awkward},
        retries=1,
    )
    try:
        bench.add(
            command=(sys.executable, "/work/here/checks.py", awkward),
            resources=Resources(nodes=2, ntasks_per_node=2),
            code=str(code),
            code_root="/work",
            cwd="/work/here",
            env={"AWKWARD": awkward, "PYTHONPATH": f"{tmp_path}/{'0' * 64}/src:/nowhere"},
            secrets=("KEY",),
            retries=1,
        )
        bench.submit({"KEY": "hidden"})
        status = bench.wait()["task"]
        assert status.state is JobState.SUCCEEDED, "".join(bench.log(rank=rank) for rank in range(4))
        (results,) = shared.glob("runs/*/tasks/task/results")
        seen = [json.loads((results / f"rank-{rank}").read_text()) for rank in range(4)]
        assert seen[2] == {
            "HOME": "/nemorun",
            "RANK": "2",
            "WORLD_SIZE": "4",
            "NEMORUN_CODE": "/nemorun/code",
            "AWKWARD": awkward,
            "KEY": "hidden",
            "cwd": "/nemorun/code/here",
            "user": 4711,
            "jobs": "/nemorun/code/src/jobs.py",
            "words": [awkward],
        }
        pods = bench.objects("pods")
        codes = sorted(
            one["state"]["terminated"]["exitCode"]
            for pod in pods
            for one in pod["status"]["containerStatuses"]
        )
        assert codes == [0, 0, 7]  # the other pod went on where it was
    finally:
        shutil.rmtree(shared)
