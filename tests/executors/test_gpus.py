"""GPUs are dealt out to nodes, and local runs queue for them; CUDA_VISIBLE_DEVICES stands for real ones."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nemorun.executors.local.gpus import GpuLocks, inventory
from nemorun.job import JobState, Reason, Resources

from .conftest import Bench, text_in, wait_until

HOLD = (
    "import os, pathlib, time\n"
    "name = os.path.basename(os.getcwd()) + os.environ['NEMORUN_TASK']\n"
    "pathlib.Path('..', 'gpus-' + name).write_text(os.environ['CUDA_VISIBLE_DEVICES'] + '\\n')\n"
    "while not pathlib.Path('..', 'go-' + name).exists(): time.sleep(0.01)\n"
)


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")


@pytest.mark.parametrize(
    ("visible", "names"),
    [("0,1", ["0", "1"]), ("", []), ("-1", []), (" 3 , GPU-8f, -1, 2", ["3", "GPU-8f"])],
)
def test_the_inventory_follows_cuda_visible_devices(visible: str, names: list[str]) -> None:
    assert inventory({"CUDA_VISIBLE_DEVICES": visible}) == names


def test_else_the_driver_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert inventory({}) == []
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        f"#!{sys.executable}\nprint('GPU 0: NVIDIA H200 (UUID: GPU-1)\\n"
        "  MIG 1g.5gb Device 0: (UUID: MIG-1)\\nGPU 1: NVIDIA H200 (UUID: GPU-2)')\n"
    )
    tool.chmod(0o755)
    assert inventory({}) == ["0", "1"]


def test_all_or_none(tmp_path: Path) -> None:
    mine, theirs = (GpuLocks(tmp_path, ["0", "1", "2"]) for _ in range(2))
    assert mine.take(2) == ["0", "1"]
    assert theirs.take(2) is None
    assert theirs.take(1) == ["2"]
    mine.give_back(["0", "1"])
    assert theirs.take(2) == ["0", "1"]


def test_each_node_gets_its_share(bench: Bench) -> None:
    code = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['LOCAL_RANK'])"
    status = bench.run(code, resources=Resources(nodes=2, ntasks_per_node=2, gpus_per_node=1))
    assert status.state == JobState.SUCCEEDED
    assert [bench.log(rank=rank) for rank in range(4)] == ["0 0\n", "0 1\n", "1 0\n", "1 1\n"]


def test_two_runs_share_what_there_is_and_a_third_waits(make_bench: Callable[..., Bench]) -> None:
    first, second, third = (make_bench(name) for name in "abc")
    for bench in (first, second, third):
        bench.add(python=HOLD, resources=Resources(gpus_per_node=1))
    folder = first.folder.parent
    first.submit()
    assert text_in(folder / "gpus-atask") == "0"
    second.submit()
    assert text_in(folder / "gpus-btask") == "1"
    third.submit()
    wait_until(lambda: third.status().reason == Reason.RESOURCES)
    assert third.status().state == JobState.PENDING and "free GPUs" in third.status().message
    (folder / "go-btask").touch()
    assert text_in(folder / "gpus-ctask") == "1"
    for name in ("atask", "ctask"):
        (folder / f"go-{name}").touch()
    for bench in (first, second, third):
        assert bench.wait()["task"].state == JobState.SUCCEEDED


def test_a_dead_supervisors_gpus_are_free_again(make_bench: Callable[..., Bench]) -> None:
    first, second = make_bench("a"), make_bench("b")
    for bench in (first, second):
        bench.add(python=HOLD, resources=Resources(gpus_per_node=2))
    folder = first.folder.parent
    first.submit()
    assert text_in(folder / "gpus-atask") == "0,1"
    second.submit()
    wait_until(lambda: second.status().reason == Reason.RESOURCES)
    os.kill(first.supervisor(), signal.SIGKILL)
    assert text_in(folder / "gpus-btask") == "0,1"
    (folder / "go-btask").touch()
    assert second.wait()["task"].state == JobState.SUCCEEDED


def test_tasks_of_one_run_queue_too(bench: Bench) -> None:
    code = (
        "import os, sys\nname = 'gpu' + os.environ['CUDA_VISIBLE_DEVICES']\n"
        "try: os.mkdir(name)\nexcept FileExistsError: sys.exit(1)\nos.rmdir(name)\n"
    )
    for number in range(5):
        bench.add(f"t{number}", python=code, resources=Resources(gpus_per_node=1))
    bench.submit()
    assert {status.state for status in bench.wait().values()} == {JobState.SUCCEEDED}
