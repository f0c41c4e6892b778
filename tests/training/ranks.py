"""Real ranks for the tests: `start` starts them, and this file as a script is what each of them runs."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nemorun.executors.local.ports import reserve_port

MODEL = {
    "hidden_size": 32,
    "num_layers": 2,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "ffn_hidden_size": 64,
    "seq_length": 32,
    "vocab_size": 257,
}


def start(
    folder: Path, ranks: int, fault: dict[str, int] | None = None, **settings: Any
) -> list[subprocess.Popen]:
    """Start ranks of a tiny run, its results in `folder`; `trainer={"max_steps": 3}` and so on set fields."""
    settings.setdefault("trainer", {}).setdefault("devices", ranks)
    with reserve_port() as reserved:
        port = reserved.getsockname()[1]
        started = []
        for rank in range(ranks):
            env = {
                **os.environ,
                "NEMORUN_RESULTS_DIR": str(folder),
                "NEMORUN_CACHE_DIR": str(folder.parent / "cache"),
                "NEMORUN_TENSORBOARD": "0",
                "OMP_NUM_THREADS": "1",
            }
            if ranks > 1:
                env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
                env |= {"LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            started.append(
                subprocess.Popen(
                    [sys.executable, __file__, json.dumps({"settings": settings, "fault": fault or {}})],
                    env=env,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=[reserved.fileno()],
                    text=True,
                )
            )
    return started


def finish(started: list[subprocess.Popen]) -> tuple[list[int], str]:
    """Exit codes, and the output of all ranks one after the other."""
    outputs = [process.communicate(timeout=120)[0] for process in started]
    return [process.returncode for process in started], "".join(outputs)


def train(folder: Path, ranks: int, **settings: Any) -> str:
    codes, output = finish(start(folder, ranks, **settings))
    assert codes == [0] * ranks, output
    return output


def wait_for(condition: Callable[[], Any], started: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + 100
    while not condition():
        assert all(process.poll() is None for process in started), finish(started)
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def kill(started: list[subprocess.Popen]) -> None:
    for process in started:
        process.kill()
    finish(started)


def metrics(folder: Path) -> dict[int, dict[str, float]]:
    """Step -> its numbers, apart from those of the machine."""
    found: dict[int, dict[str, float]] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        of_machine = ("tokens_per_second", "mfu", "data_wait", "peak_memory", "checkpoint_stall")
        entry = {name: value for name, value in entry.items() if not name.startswith(of_machine)}
        found.setdefault(entry["step"], {}).update(entry)
    return found


def main() -> None:
    arguments = json.loads(sys.argv[1])
    settings = arguments["settings"]

    from nemorun.llm import DataConfig, GPTConfig, pretrain
    from nemorun.training import CheckpointConfig, OptimConfig, TrainerConfig
    from nemorun.training.checkpoint import checkpointer, folder

    fault = arguments["fault"]
    publish, write = folder.publish, checkpointer.Checkpointer._write

    def hang(partial: Path, final: Path, state: dict[str, Any], files: dict[str, list[int]]) -> None:
        if state["step"] == fault.get("hang_at"):
            threading.Event().wait()
        publish(partial, final, state, files)

    def without_room(self: checkpointer.Checkpointer, step: int, *rest: Any) -> None:
        full = step == fault.get("full_at") and self.ranks.rank == fault.get("rank", 0)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        if full:  # What a write meets is a real error of the system, as on a full disk.
            resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
        try:
            write(self, step, *rest)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    folder.publish = hang
    checkpointer.Checkpointer._write = without_room
    pretrain(
        GPTConfig(**MODEL | settings.get("model", {})),
        TrainerConfig(**{"max_steps": 6, "log_interval": 1, "accelerator": "cpu"} | settings["trainer"]),
        DataConfig(**{"global_batch_size": 4, "micro_batch_size": 1} | settings["data"]),
        OptimConfig(**{"lr": 3e-3, "warmup_steps": 2} | settings.get("optim", {})),
        checkpoint=CheckpointConfig(**settings.get("checkpoint", {})),
        sample=None,
    )


if __name__ == "__main__":
    main()
