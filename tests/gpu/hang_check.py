"""Ranks that hang on a machine with two GPUs are ended, named, and leave what NCCL had under way.

    python tests/gpu/hang_check.py          one line for each way to hang; ends with 1 if one is wrong
    python tests/gpu/hang_check.py --cpu    the same over gloo, without NCCL's records: tests this program

Two ways are a loop of exchanges that does nothing else, two are a training run. It needs no pytest and no
network.
"""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import torch.distributed as dist
from torch import Tensor

from nemorun.executors.local.ports import reserve_port
from nemorun.llm import GPTConfig, GPTModel
from nemorun.training import CheckpointConfig, LogConfig, Trainer, TrainerConfig
from nemorun.training.batch import Inputs
from nemorun.training.distributed import join
from nemorun.training.watchdog import Watchdog

CUDA = "--cpu" not in sys.argv
TIMEOUT = 6.0
#: the first step of training has something to load and to compile
TRAINING_TIMEOUT = 30.0 if CUDA else 8.0
DEVICE = "gpu" if CUDA else "cpu"


def exchange(way: str, folder: Path) -> None:
    config = TrainerConfig(accelerator=DEVICE, devices=2)
    with join(config, folder / "hang") as ranks, Watchdog(ranks, TIMEOUT, folder / "hang") as dog:
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


class Wrong(GPTModel):
    """A model that goes wrong on rank 1, in the forward pass of step 3."""

    way = ""
    group: dist.ProcessGroup | None = None
    calls = 0

    def forward(self, x: Tensor, inputs: Inputs | None = None) -> Tensor:
        self.calls += 1
        wrong = dist.get_rank() == 1 and self.calls == 3
        if wrong and self.way == "sleeps in training":
            threading.Event().wait()
        # a group of its own: in another's, the exchange that follows would take the place of the one left out
        self.group = self.group or dist.new_group()
        if not wrong:
            dist.all_reduce(torch.ones(1, device=x.device), group=self.group)
        return super().forward(x, inputs)


def train(way: str, folder: Path) -> None:
    tiny = {"hidden_size": 64, "ffn_hidden_size": 128, "num_layers": 2, "num_attention_heads": 4}
    model = Wrong(GPTConfig(**tiny, seq_length=32, vocab_size=257))
    model.way = way
    tokens = torch.arange(2 * 33).view(2, 33)
    trainer = Trainer(
        max_steps=5,
        devices=2,
        accelerator=DEVICE,
        precision="bf16-mixed" if CUDA else "fp32",
        compile=False,
        log_interval=1,
        hang_timeout=TRAINING_TIMEOUT,
        checkpoint=CheckpointConfig(interval=0, last=False),
        log=LogConfig(dir=str(folder), tensorboard=False),
    )
    trainer.fit(model, [(tokens[:, :-1], tokens[:, 1:])])


@dataclass(frozen=True)
class Way:
    run: Callable[[str, Path], None]
    sentence: str
    """What must be said. GPUs work behind their ranks, whose hosts go on until they want a number; over gloo
    they wait in the exchange itself."""


#: What rank 1 does in step 3.
WAYS = {
    "sleeps": Way(
        exchange,
        r"rank 1 has been in 'before' of step 3 for \d+ s; rank 0 waits in '%s' of step 3"
        % ("after" if CUDA else "exchange"),
    ),
    "waits for what nobody sends": Way(
        exchange,
        r"all 2 ranks have been in 'after' of step 3 for \d+ s: "
        if CUDA
        else r"rank 0 has been in 'exchange' of step 3 for \d+ s; rank 1 waits in 'after' of step 3",
    ),
    "sleeps in training": Way(
        train,
        r"rank 1 has been in 'forward and backward' of step 3 for \d+ s; rank 0 waits in '\w+' of step 3"
        if CUDA
        else r"all 2 ranks have been in 'forward and backward' of step 3 for \d+ s: ",
    ),
    "leaves out an exchange in training": Way(
        train,
        r"all 2 ranks have been in '%s' of step 3 for \d+ s: " % ("log" if CUDA else "forward and backward"),
    ),
}


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
    # what torchfrtrace runs, wherever that is installed
    reader = [sys.executable, "-m", "torch.distributed.flight_recorder.fr_trace", folder]
    done = subprocess.run(reader, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return f"torchfrtrace does not read them: {done.stdout[-2000:]}" if done.returncode else ""


def hang(name: str, way: Way) -> bool:
    with reserve_port() as reserved, tempfile.TemporaryDirectory() as folder:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(reserved.getsockname()[1])}
        place |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "NEMORUN_RESULTS_DIR": folder}
        command = [sys.executable, __file__, "--rank", name, folder, *(["--cpu"] if not CUDA else [])]
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
        problems += [] if re.search(f"hang: {way.sentence}", text) else ["the sentence is missing"]
        problems += [
            f"no stacks of rank {n}" for n in range(2) if f"rank {n}: stacks of all threads" not in text
        ]
        if CUDA and (problem := recorded(Path(folder) / "hang")):
            problems.append(problem)
    print(
        f"{'WRONG' if problems else 'ok   '} a rank {name}: {'; '.join(problems) or 'ended and named'}",
        flush=True,
    )
    if problems:
        print(text[-3000:])
    return not problems


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        WAYS[sys.argv[2]].run(sys.argv[2], Path(sys.argv[3]))
    else:
        with ThreadPoolExecutor(1 if CUDA else len(WAYS)) as pool:  # two GPUs are enough for one at a time
            ended = list(pool.map(hang, WAYS, WAYS.values()))
        sys.exit(0 if all(ended) else 1)
