"""Tasks of every kind in real pods; where the rig has no operator, a stand-in makes them (operators.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nemorun.job import JobState, Reason, Resources
from tests.executors.kubernetes.conftest import K8sBench, eventually
from tests.executors.kubernetes.operators import operators
from tests.k8s_rig import K8sRig

Make = Callable[..., K8sBench]

MEET = """
import os, socket, sys
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
print("rank", rank, "is number", os.environ["LOCAL_RANK"], "of node", os.environ["GROUP_RANK"])
if rank == 0:
    with socket.create_server(("", place[1])) as server:
        print("met", sorted(int(server.accept()[0].recv(9)) for _ in range(size - 1)))
while rank:
    try:
        with socket.create_connection(place) as connection:
            sys.exit(connection.sendall(str(rank).encode()))
    except OSError:
        os.sched_yield()
"""
SAVES = """
import os, signal, sys, time
mark = "/state/%s-%s" % (os.environ["NEMORUN_EXPERIMENT"], os.environ["RANK"])
if os.path.exists(mark):
    sys.exit(print("goes on at step", open(mark).read()))
def save(*_):
    open(mark, "w").write("7")
    print("saved", flush=True)
    os._exit(75)
signal.signal(signal.SIGTERM, save)
print("begun", flush=True)
time.sleep(600)
"""


@pytest.fixture
def real(k8s_node: K8sRig, k8s: Make, crds: None, k8s_namespace: str) -> Iterator[Make]:
    def make(**fields: object) -> K8sBench:
        fields |= {"node_selector": {"rig/kind": "real"}, "cpus": "20m"}
        if fields["kind"] != "trainjob":  # whose runtime says that
            fields["grace_period"] = 10
        return k8s(**fields)

    with operators(k8s().api):
        yield make


@pytest.mark.parametrize("kind", ["pytorchjob", "jobset", "trainjob"])
def test_ranks_of_two_pods_meet(real: Make, kind: str) -> None:
    bench = real(kind=kind)
    bench.add(python=MEET, resources=Resources(nodes=2, ntasks_per_node=2), secrets=("TOKEN",))
    assert bench.submit({"TOKEN": "hidden"}) == {"task": f"{kind}/{bench.namespace}/task-{bench.id}"}
    now = bench.wait()["task"]
    assert (now.state, now.message) == (JobState.SUCCEEDED, "")
    assert "met [1, 2, 3]" in bench.log()
    assert "rank 3 is number 1 of node 1" in bench.log(rank=3)
    bench.executor.cancel(bench.refs)
    eventually(lambda: not bench.objects(f"{kind}s,jobs,pods,services,secrets,configmaps"))


@pytest.mark.parametrize("kind", ["job", "pytorchjob", "jobset", "trainjob"])
def test_a_suspended_task_goes_on_where_it_was(real: Make, kind: str, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    saved.mkdir()
    bench = real(kind=kind, volumes=[f"hostpath:{saved}:/state"])
    bench.add(python=SAVES, resources=Resources(nodes=2), resumable=True)
    bench.submit()
    eventually(lambda: all("begun" in bench.log(rank=rank) for rank in (0, 1)))
    bench.executor.suspend(bench.refs)
    now = bench.status()
    assert (now.state, now.reason) == (JobState.PENDING, Reason.SUSPENDED)
    eventually(lambda: bench.status().message == f"`nemorun resume {bench.id}` lets it go on")
    assert len(list(saved.iterdir())) == 2 and not bench.objects("pods")
    bench.executor.suspend(bench.refs)  # once more: nothing changes
    bench.executor.resume(bench.refs)
    assert bench.wait()["task"].state is JobState.SUCCEEDED
    assert "goes on at step 7" in bench.log(rank=0) and "goes on at step 7" in bench.log(rank=1)


@pytest.mark.parametrize("kind", ["pytorchjob", "jobset", "trainjob"])
def test_a_rank_that_fails_is_told(real: Make, kind: str) -> None:
    bench = real(kind=kind)
    code = "import os, sys, time; sys.exit('no data') if os.environ['RANK'] == '1' else time.sleep(600)"
    bench.add(python=code, resources=Resources(nodes=2))
    bench.submit()
    now = bench.wait()["task"]
    assert (now.state, now.reason, now.exit_code) == (JobState.FAILED, Reason.EXIT_CODE, 1)
    assert "rank 1 on rig-node" in now.message
