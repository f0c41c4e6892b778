"""A real Kubernetes API server (scripts/k8s-rig), and on demand a node that runs pods, for the tests."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

K8S_RIG = Path(__file__).parents[1] / "scripts" / "k8s-rig"


def _rig(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """What it starts outlives the test, and so must not bear its marks."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("NEMORUN_")}
    return subprocess.run([K8S_RIG, *words], text=True, capture_output=True, env={**clean, **env})


@dataclass(frozen=True)
class K8sRig:
    """The running rig: what `k8s-rig env --json` says of it, and its commands."""

    facts: dict[str, Any]

    @property
    def admin(self) -> Path:
        """kubeconfig of the administrator."""
        return Path(self.facts["kubeconfig"])

    def kubeconfig(self, user: str) -> Path:
        """Of `admin`, or of `alice` or `bob`, who may do nothing until roles are bound to them."""
        return self.admin if user == "admin" else Path(self.facts["users"][user])

    @property
    def image(self) -> str:
        """An image with Python that the real node has."""
        return str(self.facts["image"])

    def __call__(self, *words: str, **env: str) -> str:
        done = _rig(*words, **env)
        assert done.returncode == 0, f"k8s-rig {words}: {done.stdout}{done.stderr}"
        return done.stdout

    def nodes(self, count: int) -> None:
        """See that there are at least so many fake nodes, each with 8 GPUs."""
        self("up", str(count))

    def kubectl(self, *words: str, user: str = "admin", stdin: str = "") -> str:
        """What kubectl prints; it must succeed."""
        argv = ["kubectl", "--kubeconfig", str(self.kubeconfig(user)), *words]
        done = subprocess.run(argv, text=True, capture_output=True, input=stdin)
        assert done.returncode == 0, f"kubectl {words}: {done.stdout}{done.stderr}"
        return done.stdout

    def get(self, what: str, namespace: str, *words: str) -> list[dict[str, Any]]:
        """The objects of a kind ("jobs,secrets") in a namespace, as the administrator sees them."""
        listed = json.loads(self.kubectl("get", what, "-n", namespace, "-o", "json", *words))
        return list(listed["items"])

    def bind(self, user: str, namespace: str, role: str) -> None:
        """Give a user a role of the namespace."""
        self.kubectl(
            "create", "rolebinding", f"{role}-{user}", f"--role={role}", f"--user={user}", "-n", namespace
        )


@pytest.fixture(scope="session")
def k8s_rig() -> Iterator[K8sRig]:
    """The rig, up with a few fake nodes; taken down after the tests unless it was up before."""
    try:
        # etcd: an API server that is just being restarted does not make the rig ours to take down
        was_up = "etcd         pid" in _rig("status").stdout
        done = _rig("up", "4", RIG_NODE="0")
    except OSError as error:
        pytest.skip(f"no Kubernetes rig here: {error}")
    if done.returncode == 2:
        pytest.skip(f"no Kubernetes rig here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stdout + done.stderr
    yield K8sRig(json.loads(_rig("env", "--json").stdout))
    if not was_up:
        assert _rig("down").returncode == 0


@pytest.fixture(scope="session")
def k8s_node(k8s_rig: K8sRig) -> K8sRig:
    """The rig with its real node (label rig/kind=real), which runs pods of the image `k8s_rig.image`."""
    done = _rig("up", RIG_NODE="1")
    if done.returncode == 2:
        pytest.skip(f"no node for real pods here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stdout + done.stderr
    return k8s_rig


@pytest.fixture
def k8s_namespace(k8s_rig: K8sRig) -> Iterator[str]:
    """A namespace of the test's own, deleted with all that is in it."""
    name = f"kr-{uuid.uuid4().hex[:8]}"
    k8s_rig.kubectl("create", "namespace", name)
    yield name
    remove_namespace(k8s_rig, name)


def remove_namespace(rig: K8sRig, name: str) -> None:
    """Pods of fake nodes have nobody who would confirm their end, so they go without a grace period.

    The namespace first: from then on no controller puts new ones in.
    """
    rig.kubectl("delete", "namespace", name, "--wait=false")
    rig.kubectl("delete", "jobs,pods", "--all", "-n", name, "--grace-period=0", "--force", "--wait=false")
