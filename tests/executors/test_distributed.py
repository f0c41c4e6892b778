"""The environment of ranks is what torch.distributed needs, over simulated nodes."""

from __future__ import annotations

import pytest

from nemorun.job import JobState, Resources

from .conftest import Bench

pytest.importorskip("torch")

ALL_REDUCE = (
    "import os, torch\nimport torch.distributed as dist\n"
    "dist.init_process_group('gloo')\n"
    "total = torch.tensor([float(os.environ['RANK'])])\n"
    "dist.all_reduce(total)\n"
    "local = torch.tensor([float(os.environ['LOCAL_RANK'])])\n"
    "dist.all_reduce(local)\n"
    "print(dist.get_rank(), dist.get_world_size(), total.item(), local.item())\n"
    "dist.destroy_process_group()\n"
)


def test_gloo_over_two_nodes_with_two_ranks_each(bench: Bench) -> None:
    status = bench.run(ALL_REDUCE, resources=Resources(nodes=2, ntasks_per_node=2))
    assert status.state == JobState.SUCCEEDED, bench.executor.excerpt(bench.ref())
    assert [bench.log(rank=rank).splitlines()[-1] for rank in range(4)] == [
        f"{rank} 4 6.0 2.0" for rank in range(4)
    ]
