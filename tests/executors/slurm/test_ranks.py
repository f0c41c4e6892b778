"""What ranks find on a real Slurm: their place, all GPUs of their node, their values."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from nemorun.job import JobState, Resources

from .conftest import SlurmBench
from .scripts import AWKWARD

SHOW = f"""
import json, os
names = "RANK LOCAL_RANK NODE_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_WORLD_SIZE MASTER_ADDR".split()
names += ["MASTER_PORT", "CUDA_VISIBLE_DEVICES", "NEMORUN_HET_GROUP", *{list(AWKWARD)}]
found = {{name: os.environ.get(name) for name in names}}
print(json.dumps({{**found, "host": os.uname().nodename}}))
"""


def found(bench: SlurmBench, ranks: int) -> list[dict[str, Any]]:
    statuses = bench.wait()
    assert [status.state for status in statuses.values()] == [JobState.SUCCEEDED], statuses
    return [json.loads(bench.log(rank=rank)) for rank in range(ranks)]


def test_ranks_find_their_place_gpus_and_values(slurm: Callable[..., SlurmBench]) -> None:
    bench = slurm(gpus_per_task=1, cpus_per_task=2, comment='it\'s #1 of "mine"')
    uneven = slurm(cpus_per_task=2, het_groups=[{"cpus_per_task": 4, "mem": "50"}])
    bench.add(python=SHOW, resources=Resources(2, 2, 2), env=AWKWARD)
    uneven.add(python=SHOW, resources=Resources(1, 2, 0))
    handle = bench.submit()["task"]
    uneven.submit()

    ranks = found(bench, 4)
    places = [(one["RANK"], one["LOCAL_RANK"], one["NODE_RANK"]) for one in ranks]
    assert places == [("0", "0", "0"), ("1", "1", "0"), ("2", "0", "1"), ("3", "1", "1")]
    for one in ranks:
        assert (one["WORLD_SIZE"], one["LOCAL_WORLD_SIZE"], one["GROUP_WORLD_SIZE"]) == ("4", "2", "2")
        assert one["MASTER_ADDR"] == ranks[0]["host"]
        assert int(one["MASTER_PORT"]) == 15000 + int(handle) % 15000
        assert len(one["CUDA_VISIBLE_DEVICES"].split(",")) == 2
        assert {name: one[name] for name in AWKWARD} == AWKWARD
    shown = bench.on_login(f"scontrol show job {handle}")
    assert f'Comment=nemorun:{bench.id}.task it\'s #1 of "mine"' in shown

    ranks = found(uneven, 3)
    assert [(one["LOCAL_RANK"], one["NODE_RANK"]) for one in ranks] == [("0", "0"), ("1", "0"), ("0", "1")]
    assert [(one["NEMORUN_HET_GROUP"], one["LOCAL_WORLD_SIZE"]) for one in ranks] == [("0", "2")] * 2 + [
        ("1", "1")
    ]
    assert {one["WORLD_SIZE"] for one in ranks} == {"3"}


def test_a_module_that_is_not_there_fails_the_task(bench: SlurmBench) -> None:
    bench.executor.modules = ["no/such"]
    bench.add(python="print('started')")
    bench.submit()
    assert bench.wait()["task"].state == JobState.FAILED
    assert "module" in bench.executor.excerpt(bench.ref())
    assert "started" not in bench.log()
