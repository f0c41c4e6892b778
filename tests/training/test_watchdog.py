"""The watchdog names the rank that hangs, on real ranks and in all kinds of places."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from nemorun.training import TrainerConfig
from nemorun.training.distributed import join
from nemorun.training.watchdog import Place, Watchdog, diagnosis
from tests.gpu import hang_check
from tests.training.forks import Forks

DATA, BACKWARD, LOG = (
    Place(30, 12, "data", 600.2),
    Place(34, 13, "backward", 599.0),
    Place(33, 13, "log", 600.0),
)


@pytest.mark.parametrize(
    ("places", "sentence"),
    [
        (
            [BACKWARD, BACKWARD, BACKWARD, DATA],
            "rank 3 has been in 'data' of step 12 for 600 s; the others wait in 'backward' of step 13",
        ),
        (
            [DATA, BACKWARD, DATA, LOG],
            "ranks 0, 2 have been in 'data' of step 12 for 600 s; "
            "the others wait: rank 1 in 'backward' of step 13, rank 3 in 'log' of step 13",
        ),
        ([DATA, LOG], "rank 0 has been in 'data' of step 12 for 600 s; rank 1 waits in 'log' of step 13"),
        ([LOG, LOG], "all 2 ranks have been in 'log' of step 13 for 600 s: what they do there does not end"),
        ([DATA], "the only rank has been in 'data' of step 12 for 600 s: what they do there does not end"),
        ([LOG, None, LOG], "rank 1 has not been heard of; the others wait in 'log' of step 13"),
    ],
)
def test_the_rank_that_is_waited_for_is_named(places: list[Place | None], sentence: str) -> None:
    assert diagnosis(places) == sentence


def run_until_it_hangs(dumps: str, timeout: float, hangs: bool, steps: int) -> None:
    """Three ranks that exchange numbers each step; the second one never gets its third batch."""
    with (
        join(TrainerConfig(accelerator="cpu", devices=3)) as ranks,
        Watchdog(ranks, timeout, Path(dumps)) as dog,
    ):
        for step in range(1, steps):
            dog.at("data", step)
            if hangs and ranks.rank == 1 and step == 3:
                threading.Event().wait()
            dog.at("exchange", step)
            ranks.sum(1)


def test_all_ranks_end_with_their_stacks_and_one_names_the_one_that_hangs(
    forks: Forks, tmp_path: Path
) -> None:
    outcomes = forks.run(run_until_it_hangs, 3, str(tmp_path), 3.0, True, 9)
    output = "".join(outcome.output for outcome in outcomes)
    assert [outcome.code for outcome in outcomes] == [1, 1, 1], output
    assert output.count("hang: ") == 1
    sentence = r"rank 1 has been in 'data' of step 3 for \d+ s; the others wait in 'exchange' of step 3"
    assert re.search(sentence, output), output
    for rank, outcome in enumerate(outcomes):
        assert f"rank {rank}: stacks of all threads" in outcome.output
        assert "in run_until_it_hangs" in outcome.output
    assert "threading.py" in outcomes[1].output and "all_reduce" in outcomes[0].output


def test_ranks_that_go_on_are_left_alone(forks: Forks, tmp_path: Path) -> None:
    assert "hang" not in forks.check(run_until_it_hangs, 3, str(tmp_path), 30.0, False, 100)


def turn_for_ever(dumps: str) -> None:
    """Busy, and not waiting for anybody."""
    with join(TrainerConfig(accelerator="cpu")) as ranks, Watchdog(ranks, 0.5, Path(dumps)) as dog:
        dog.at("data", 1)
        threading.Event().wait(0.3)  # the watchdog has begun
        sum(iter(lambda: 1, 2))
        raise AssertionError("unreachable")


def test_one_rank_alone_is_watched_as_well(forks: Forks, tmp_path: Path) -> None:
    (outcome,) = forks.run(turn_for_ever, 1, str(tmp_path))
    assert outcome.code == 1
    assert "in turn_for_ever" in outcome.output
    assert "hang: the only rank has been in 'data' of step 1 for" in outcome.output


@pytest.mark.slow
def test_the_program_that_lets_ranks_hang_on_gpus_runs() -> None:
    done = subprocess.run(
        [sys.executable, hang_check.__file__, "--cpu"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok ") == len(hang_check.WAYS) == 4


def records(states: list[str]) -> dict[str, Any]:
    """What a rank's NCCL writes: exchanges that came to `states`, in the form of torch's flight recorder."""
    entry = {
        "process_group": ("0", "default_pg"),
        "profiling_name": "nccl:all_reduce",
        "p2p_seq_id": 0,
        "is_p2p": False,
        "frames": [{"filename": "loop.py", "line": 3, "name": "step"}],
        **{name: [[4]] for name in ("input_sizes", "output_sizes")},
        **{name: ["Float"] for name in ("input_dtypes", "output_dtypes")},
        **dict.fromkeys(("pg_id", "time_created_ns", "timeout_ms"), 0),
    }
    entries = [
        {
            **entry,
            "record_id": i,
            "op_id": i + 1,
            "collective_seq_id": i + 1,
            "state": state,
            "retired": False,
        }
        for i, state in enumerate(states)
    ]
    groups = {"0": {"name": "0", "desc": "default_pg", "ranks": "[0, 1]"}}
    return {"version": "2.10", "pg_config": groups, "entries": entries}


def test_records_of_exchanges_are_looked_at_as_torch_reads_them(tmp_path: Path) -> None:
    def write(*ranks: Any) -> str:
        for number, found in enumerate(ranks):
            (tmp_path / f"nccl_trace_rank_{number}").write_bytes(pickle.dumps(found))
        return hang_check.recorded(tmp_path)

    assert write(records(["completed", "started"])) == "no nccl_trace_rank_1"
    assert not write(records(["completed", "started"]), records(["completed"]))
    assert "nothing under way: ['completed']" in write(records(["completed"]), records(["completed"]))
    unread = {"entries": records(["started"])["entries"]}  # torch's reader wants the groups as well
    assert write(unread, unread).startswith("torchfrtrace does not read them: ")
