"""Ranks forked from one process that has torch already: a group starts in a moment, not in seconds."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemorun.executors.local.ports import reserve_port

_PATIENCE = 300.0


@dataclass
class Outcome:
    code: int
    """Exit code; of a rank that was killed, minus the signal's number."""
    output: str


class Forks:
    """Runs functions of test modules on ranks: `run(function, 2, "argument")` -> what came of each rank."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.training.forks"],
            cwd=Path(__file__).parents[2],
            # pytest imports the modules of tests from their own folder
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, function: Callable[..., Any], world: int, *args: Any) -> list[Outcome]:
        """`args` are what JSON can hold. A rank's exit code is 1 after an exception, else 0."""
        assert self._server.stdin and self._server.stdout
        request = [function.__module__, function.__name__, world, args]
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return [Outcome(**found) for found in json.loads(self._server.stdout.readline())]

    def check(self, function: Callable[..., Any], world: int, *args: Any) -> str:
        """The output of all ranks, none of which may fail."""
        outcomes = self.run(function, world, *args)
        output = "".join(outcome.output for outcome in outcomes)
        assert [outcome.code for outcome in outcomes] == [0] * world, output
        return output

    def close(self) -> None:
        assert self._server.stdin and self._server.stdout
        self._server.stdin.close()
        self._server.wait(timeout=_PATIENCE)
        self._server.stdout.close()


def _serve() -> None:
    import torch.distributed.checkpoint
    import torch.distributed.fsdp  # noqa: F401 - imported once, for all that are forked

    for line in sys.stdin:
        module, name, world, args = json.loads(line)
        function = getattr(importlib.import_module(module), name)
        with tempfile.TemporaryDirectory() as folder:
            outcomes = _fork(function, world, args, Path(folder))
        print(json.dumps([vars(outcome) for outcome in outcomes]), flush=True)


def _fork(function: Callable[..., Any], world: int, args: list[Any], folder: Path) -> list[Outcome]:
    with reserve_port() as reserved:
        port = reserved.getsockname()[1]
        pids = []
        for rank in range(world):
            if (pid := os.fork()) == 0:
                _be_rank(rank, world, port, function, args, folder / str(rank))
            pids.append(pid)
        codes = {}
        deadline = time.monotonic() + _PATIENCE
        while len(codes) < world:
            for rank, pid in enumerate(pids):
                if rank not in codes and (found := os.waitpid(pid, os.WNOHANG))[0]:
                    codes[rank] = os.waitstatus_to_exitcode(found[1])
                elif rank not in codes and time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
    return [Outcome(codes[rank], (folder / str(rank)).read_text()) for rank in range(world)]


def _be_rank(
    rank: int, world: int, port: int, function: Callable[..., Any], args: list[Any], output: Path
) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    code = 1
    try:
        function(*args)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - it is printed, and this process is to end here whatever happens
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve()
