"""Every test has its own nemorun home and no leftovers of the surroundings; no process outlives the tests."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.k8s_rig import k8s_namespace, k8s_node, k8s_rig
from tests.slurm_rig import rig, wan

__all__ = ["k8s_namespace", "k8s_node", "k8s_rig", "rig", "wan"]

#: What a launcher, a scheduler or torchrun around the test run may have left in the environment.
_INHERITED_PREFIXES = ("NEMORUN_", "SLURM_", "SBATCH_", "TORCHELASTIC_")
_INHERITED = frozenset(
    {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "NODE_RANK"}
    | {"MASTER_ADDR", "MASTER_PORT"}
)


# A machine that is busy is no failure.
_BUSY = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("busy", _BUSY)
hypothesis.settings.load_profile("busy")


def pytest_configure() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would all that the tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


#: Fixtures of which there is one on a machine: the tests that use one run after each other, in one process.
_SHARED = {"rig": "slurm", "k8s_rig": "kubernetes"}


def pytest_itemcollected(item: pytest.Item) -> None:
    """Say which tests share a cluster: pytest-xdist looks at that as soon as all are collected."""
    # some ask for the fixture while they run
    used = {"rig"} if "tests/remote/" in item.nodeid else {*getattr(item, "fixturenames", ())}
    for fixture in used & _SHARED.keys():
        item.add_marker(pytest.mark.xdist_group(_SHARED[fixture]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests run last, so that the others answer early; of them the longest first, or all wait for it."""

    def place(item: pytest.Item) -> tuple[bool, float]:
        marker = item.get_closest_marker("slow")
        return marker is not None, -marker.kwargs.get("minutes", 0) if marker else 0

    items.sort(key=place)


@pytest.fixture(autouse=True)
def nemorun_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This test's own NEMORUN_HOME (returned) and XDG_CONFIG_HOME, beside and not inside `tmp_path`."""
    for name in list(os.environ):
        if name in _INHERITED or name.startswith(_INHERITED_PREFIXES):
            monkeypatch.delenv(name)
    folder = tmp_path_factory.mktemp("nemorun")
    monkeypatch.setenv("NEMORUN_HOME", str(folder / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    return folder / "home"


@pytest.fixture(scope="session", autouse=True)
def no_process_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """After the last test, no process lives that has one of the tests' homes in its environment (Linux)."""
    yield
    marker = f"NEMORUN_HOME={tmp_path_factory.getbasetemp()}{os.sep}".encode()
    deadline = time.monotonic() + 15
    while (left := _processes_with(marker)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "processes outlived the tests: " + "; ".join(left.values())


def _processes_with(marker: bytes) -> dict[int, str]:
    """Process id -> command line of every other process whose environment holds `marker`."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int(folder.name) != os.getpid() and marker in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it ended meanwhile, or is not ours
            continue
    return found
