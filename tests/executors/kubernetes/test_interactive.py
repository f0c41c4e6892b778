"""Shells in real pods, driven as a person does, by the command line and on a terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.k8s_rig import K8sRig
from tests.slurm_rig import eventually
from tests.terminals import PROMPT, Terminal

JOBS = """\
import os, time
from pathlib import Path

def work(name: str = "it") -> None:
    print("at it", flush=True)
    while not Path("/tmp/enough").exists():
        time.sleep(0.1)
"""
SETTINGS = """\
executors:
  k8s:
    type: kubernetes
    kubeconfig: {kubeconfig}
    namespace: {namespace}
    image: {image}
    node_selector: {{rig/kind: real}}
    security_context: {{runAsUser: 1000}}
    env_vars: {{MINE: "it's mine", PROMPT_COMMAND: "PS1='{prompt}'"}}
    grace_period: 5
"""


class Desk:
    """A workspace with a terminal, and what it has on the cluster."""

    def __init__(self, rig: K8sRig, namespace: str, folder: Path) -> None:
        self.rig, self.namespace = rig, namespace
        self._opened: list[Terminal] = []
        (folder / "jobs.py").write_text(JOBS)
        settings = {"kubeconfig": rig.admin, "namespace": namespace, "image": rig.image, "prompt": PROMPT}
        (folder / "nemorun.yaml").write_text(SETTINGS.format(**settings))

    def sit(self, *words: str) -> Terminal:
        self._opened.append(Terminal([sys.executable, "-m", "nemorun", *words]))
        return self._opened[-1]

    def call(self, *words: str) -> tuple[int, str]:
        """Without a terminal: exit code, and what it prints."""
        argv = [sys.executable, "-m", "nemorun", *words]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    def left(self) -> list[str]:
        """What is there that is not going, as kind and name."""
        listed = self.rig.get(
            "pods,secrets,configmaps", self.namespace, "-l", "app.kubernetes.io/managed-by=nemorun"
        )
        here = (one for one in listed if "deletionTimestamp" not in one["metadata"])
        return [f"{one['kind']} {one['metadata']['name']}" for one in here]

    def close(self) -> None:
        for terminal in self._opened:
            terminal.close()


@pytest.fixture
def desk(
    k8s_node: K8sRig, k8s_namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Desk]:
    monkeypatch.chdir(tmp_path)
    made = Desk(k8s_node, k8s_namespace, tmp_path)
    yield made
    made.close()


def test_a_shell_in_a_pod_that_ends_with_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "$ecret")
    shell = desk.sit("shell", "-e", "k8s", "--secret", "MY_TOKEN")
    shell.do("stty size; head -n 1 jobs.py; echo $MINE", "30 100\r\nimport os, time\r\nit's mine")
    assert shell.raw
    shell.do('echo "<$MY_TOKEN>"', "<$ecret>")
    shell.resize(132, 43)
    shell.do('until [ "$(stty size)" = "43 132" ]; do :; done; echo resi""zed', "resized")
    shell.do('sh -c \'echo star""ted; exec sleep 600\'; echo ne""ver', "started")
    shell.type("\x03")
    shell.do('echo aft""er', "after")
    assert [one.split()[0] for one in desk.left()].count("Pod") == 1
    shell.expect(PROMPT)
    shell.type("exit 7\r")
    assert shell.end() == 7
    assert shell.restored and "never" not in shell.shown
    eventually(lambda: not desk.left())


@pytest.mark.parametrize("how", [signal.SIGHUP, signal.SIGTERM])
def test_a_closed_window_takes_its_pod_along(desk: Desk, how: signal.Signals) -> None:
    shell = desk.sit("shell", "-e", "k8s")
    shell.do('echo he""re', "here")
    os.kill(shell.pid, how)
    assert shell.end() != 0
    assert shell.restored
    eventually(lambda: not desk.left())


def test_what_keeps_a_shell_from_its_pod_is_said_and_ctrl_c_gives_up(desk: Desk) -> None:
    shell = desk.sit("shell", "-e", "k8s", "executor.num_gpus=9")
    shell.expect("Insufficient nvidia.com/gpu")
    shell.type("\x03")
    assert shell.end() == 130
    assert shell.restored
    eventually(lambda: not desk.left())


def test_a_shell_beside_a_rank(desk: Desk) -> None:
    ranks = ("executor.nodes=2", "executor.ntasks_per_node=2")
    code, said = desk.call("run", "jobs.py:work", "-e", "k8s", *ranks, "--detach")
    assert code == 0, said
    eventually(lambda: desk.call("logs", "-1", "--rank", "2")[1] == "at it\n")
    shell = desk.sit("attach", "-1", "--rank", "3")
    shell.do(
        "echo $RANK $LOCAL_RANK $WORLD_SIZE $JOB_COMPLETION_INDEX; head -n 1 jobs.py", "3 1 4 1\r\nimport os"
    )
    shell.do("touch /tmp/enough; exit 3", "")
    assert shell.end() == 3
    shell = desk.sit("attach", "-1", "--rank", "0")
    shell.do("touch /tmp/enough; exit", "")
    shell.end()
    eventually(lambda: "SUCCEEDED" in desk.call("status", "-1")[1])
    shell = desk.sit("attach", "-1")
    shell.expect("nothing to attach to")
    assert shell.end() == 2


def test_no_terminal(desk: Desk) -> None:
    code, said = desk.call("shell", "-e", "k8s")
    assert code == 2 and "needs a terminal" in said
    assert desk.left() == []
