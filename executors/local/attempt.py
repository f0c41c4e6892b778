"""One attempt at a task: its ranks are started together, end together, and leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nemorun.executors.local import processes
from nemorun.executors.local.environment import rank_environment
from nemorun.executors.local.plan import TaskPlan
from nemorun.executors.local.ports import reserve_port
from nemorun.job import EXIT_RESUME, Reason

#: Why the ranks are being ended; a rank that fails does it to the others.
Cause = Literal["cancelled", "time limit", "a rank failed", "a rank asks to be resumed"]


@dataclass
class Rank:
    number: int
    process: subprocess.Popen[bytes]
    identity: str | None
    code: int | None = None
    """As `subprocess` has it, -n for signal n; None while it, or what it started, runs."""


@dataclass(frozen=True)
class Outcome:
    reason: Reason
    """NONE where every rank ended well."""
    message: str = ""
    exit_code: int | None = 0
    failed_rank: int = 0


class Attempt:
    def __init__(self, task: TaskPlan, number: int, grace_period: float, gpus: list[str]) -> None:
        self.task, self.number, self.gpus = task, number, gpus
        self._grace = grace_period
        self._logs = Path(task.run_dir) / "logs" / f"attempt-{number}"
        self._cause: Cause | None = None
        self._failures: list[Rank] = []
        self._terminate_at: float | None = None
        self._terminated = False
        self._kill_at: float | None = None
        self._deadline: float | None = None
        self._memory_kills = processes.out_of_memory_kills()
        self.ranks: list[Rank] = []

    def start(self, environment: Mapping[str, str], lifeline: int, now: float) -> None:
        """Start all ranks, or none: raises OSError when one could not be. `lifeline` ends them if we die."""
        if self.task.time_limit is not None:
            self._deadline = now + self.task.time_limit
        try:
            for folder in (Path(self.task.run_dir) / "results", self._logs.parent, self._logs):
                folder.mkdir(exist_ok=True, mode=0o700)
            with ExitStack() as ours:
                inherited = [lifeline]
                if self.task.distributed:
                    port = ours.enter_context(reserve_port())
                    inherited.append(port.fileno())
                    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port.getsockname()[1])}
                    environment = {**place, **environment}
                for number in range(self.task.world_size):
                    env = {**environment, **rank_environment(self.task, self.number, number, self.gpus)}
                    env["NEMORUN_LIFELINE"] = str(lifeline)
                    self.ranks.append(self._start_rank(number, env, inherited))
        except OSError:
            self.kill()
            raise

    def _start_rank(self, number: int, env: Mapping[str, str], inherited: Sequence[int]) -> Rank:
        log = os.open(self._logs / f"rank-{number}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            process = subprocess.Popen(
                self.task.argv,
                env=env,
                cwd=self.task.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=inherited,
                start_new_session=True,
            )
        finally:
            os.close(log)
        return Rank(number, process, processes.identity(process.pid))

    def stop(self, cause: Cause, now: float, patience: float = 0.0) -> None:
        """SIGTERM after `patience` seconds, SIGKILL one grace period later. The first cause counts."""
        if self._cause is None:
            self._cause = cause
        if not self._terminated and (self._terminate_at is None or now + patience < self._terminate_at):
            self._terminate_at = now + patience
            self._kill_at = self._terminate_at + self._grace

    def step(self, now: float) -> bool:
        """Look after the ranks; True once all have ended, and all that they had started."""
        if self._deadline is not None and now >= self._deadline:
            self._deadline = None
            self.stop("time limit", now)
        ended = [rank for rank in self.ranks if rank.code is None and processes.has_ended(rank.process)]
        for rank in sorted(ended, key=self._last_written):
            # Its children get the rest of the grace period; unreaped, it keeps their group's number taken.
            if self._kill_at and now < self._kill_at and processes.group_is_alive(rank.process.pid):
                continue
            processes.kill_group(rank.process.pid)
            rank.code = rank.process.wait()
            if rank.code != 0:
                self._failures.append(rank)
        if self._failures and self._cause is None:
            if self._failures[0].code == EXIT_RESUME:
                self.stop("a rank asks to be resumed", now, patience=self._grace)
            else:
                self.stop("a rank failed", now)
        running = [rank for rank in self.ranks if rank.code is None]
        if not self._terminated and self._terminate_at is not None and now >= self._terminate_at:
            self._terminated = True
            for rank in running:
                # The rank alone: its data loaders must live while it saves. A command's worker hands it on.
                os.kill(rank.process.pid, signal.SIGTERM)
        if self._kill_at is not None and now >= self._kill_at:
            for rank in running:
                processes.kill_group(rank.process.pid)
        if running:
            return False
        processes.kill_marked(self.task.token)
        return True

    def next_deadline(self, now: float) -> float | None:
        """When `step` has something to do though no rank ends; None where that is never."""
        # Once they are to end we look often: children of ranks end without telling us.
        return self._deadline if self._kill_at is None else now + 0.02

    def kill(self) -> None:
        """End everything at once."""
        for rank in self.ranks:
            if rank.code is None:
                processes.kill_group(rank.process.pid)
                rank.code = rank.process.wait()
        processes.kill_marked(self.task.token)

    def outcome(self) -> Outcome:
        """What became of it, once all ranks have ended."""
        if self._cause == "cancelled":
            return Outcome(Reason.CANCELLED, "it was cancelled", None)
        if self._cause == "time limit":
            return Outcome(Reason.TIMEOUT, f"it ran longer than its limit of {self.task.time_limit} s", None)
        if not self._failures:
            return Outcome(Reason.NONE)
        accounts = {rank.number: self._account(rank) for rank in self._failures}
        first = self._failures[0]
        code = first.code or 0
        if accounts[first.number] or code == -signal.SIGABRT or (code > 0 and code != EXIT_RESUME):
            # The first to end may only echo one that takes longer to end: go by when they raised.
            first = min(self._failures, key=lambda rank: accounts[rank.number].get("time", float("inf")))
        return self._outcome_of(first, accounts[first.number])

    def _outcome_of(self, rank: Rank, account: dict[str, Any]) -> Outcome:
        who = f"rank {rank.number} of {self.task.world_size}" if self.task.world_size > 1 else "it"
        code = rank.code or 0
        if account:  # whatever ended it after that, we or a crash on its way out
            out_of_memory = account["type"] in ("MemoryError", "OutOfMemoryError")
            reason = Reason.OUT_OF_MEMORY if out_of_memory else Reason.EXIT_CODE
            return Outcome(reason, f"{who} raised {account['error']}", max(1, code), rank.number)
        if code == EXIT_RESUME:
            return Outcome(Reason.PREEMPTED, f"{who} asked to be started again", code, rank.number)
        if code > 0:
            return Outcome(Reason.EXIT_CODE, f"{who} ended with exit code {code}", code, rank.number)
        name = _signal_name(-code)
        if code == -signal.SIGTERM:
            message = f"{who} was ended by {name}, which nemorun did not send"
            return Outcome(Reason.PREEMPTED, message, 128 - code, rank.number)
        if code == -signal.SIGKILL and (processes.out_of_memory_kills() or 0) > (self._memory_kills or 0):
            message = f"{who} was killed while the kernel was out of memory"
            return Outcome(Reason.OUT_OF_MEMORY, message, 128 - code, rank.number)
        hint = "; it may have run out of memory" if code == -signal.SIGKILL else ""
        return Outcome(Reason.SIGNAL, f"{who} was ended by {name}{hint}", 128 - code, rank.number)

    def _account(self, rank: Rank) -> dict[str, Any]:
        """What the worker wrote down about the exception that ended it."""
        with suppress(OSError, ValueError):
            account: dict[str, Any] = json.loads((self._logs / f"rank-{rank.number}.failure").read_text())
            return account
        return {}

    def _last_written(self, rank: Rank) -> float:
        with suppress(OSError):
            return (self._logs / f"rank-{rank.number}.log").stat().st_mtime
        return float("inf")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
