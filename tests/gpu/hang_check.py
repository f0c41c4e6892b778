"""Ranks that hang on a machine with two GPUs are ended, named, and leave what NCCL had under way.

    python tests/gpu/hang_check.py          one line for each way to hang; ends with 1 if one is wrong
    python tests/gpu/hang_check.py --cpu    the same over gloo, without NCCL's records: tests this program

It needs no pytest and no network.
"""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import torch.distributed as dist

from nemorun.executors.local.ports import reserve_port
from nemorun.training import TrainerConfig
from nemorun.training.distributed import join
from nemorun.training.watchdog import Watchdog

CUDA = "--cpu" not in sys.argv
TIMEOUT = 6.0
#: What rank 1 does in step 3 -> the sentence that must be said. GPUs work behind their ranks, whose hosts go
#: on until they want a number; over gloo they wait in the exchange itself.
WAYS = {
    "sleeps": r"hang: rank 1 has been in 'before' of step 3 for \d+ s; rank 0 waits in '%s' of step 3"
    % ("after" if CUDA else "exchange"),
    "waits for what nobody sends": r"hang: all 2 ranks have been in 'after' of step 3 for \d+ s: "
    if CUDA
    else r"hang: rank 0 has been in 'exchange' of step 3 for \d+ s; rank 1 waits in 'after' of step 3",
}


def rank(way: str, folder: Path) -> None:
    config = TrainerConfig(accelerator="gpu" if CUDA else "cpu", devices=2)
    with join(config, folder) as ranks, Watchdog(ranks, TIMEOUT, folder) as dog:
        number = torch.ones(4, device=ranks.device)
        for step in range(1, 5):
            wrong = ranks.rank == 1 and step == 3
            dog.at("before", step)
            if wrong and way == "sleeps":
                threading.Event().wait()
            dog.at("exchange", step)
            if not wrong:
                dist.all_reduce(number)
            dog.at("after", step)
            if wrong:
                dist.recv(number, 0)
            number.sum().item()


def recorded(folder: Path) -> str:
    """What is wrong with NCCL's records, if anything."""
    for number in range(2):
        file = folder / f"nccl_trace_rank_{number}"
        if not file.exists():
            return f"no {file.name}"
        entries = pickle.loads(file.read_bytes())["entries"]  # noqa: S301 - our own ranks wrote it
        states = [entry["state"] for entry in entries]
        if number == 0 and (not states or states[-1] == "completed"):
            return f"{file.name} has nothing under way: {states}"
    return ""


def hang(way: str) -> bool:
    with reserve_port() as reserved, tempfile.TemporaryDirectory() as folder:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(reserved.getsockname()[1])}
        place |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        command = [sys.executable, __file__, "--rank", way, folder, *(["--cpu"] if not CUDA else [])]
        ranks = [
            subprocess.Popen(
                command,
                env=os.environ | place | {"RANK": str(number), "LOCAL_RANK": str(number)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for number in range(2)
        ]
        outputs = []
        for one in ranks:
            try:
                outputs.append(one.communicate(timeout=120)[0])
            except subprocess.TimeoutExpired:
                one.kill()
                outputs.append(f"did not end\n{one.communicate()[0]}")
        text = "".join(outputs)
        problems = [
            f"rank {n} ended with {one.returncode}" for n, one in enumerate(ranks) if one.returncode != 1
        ]
        problems += [] if re.search(WAYS[way], text) else ["the sentence is missing"]
        problems += [
            f"no stacks of rank {n}" for n in range(2) if f"rank {n}: stacks of all threads" not in text
        ]
        if CUDA and (problem := recorded(Path(folder))):
            problems.append(problem)
    print(
        f"{'WRONG' if problems else 'ok   '} a rank {way}: {'; '.join(problems) or 'ended and named'}",
        flush=True,
    )
    if problems:
        print(text[-3000:])
    return not problems


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        rank(sys.argv[2], Path(sys.argv[3]))
    else:
        sys.exit(sum(not hang(way) for way in WAYS))
