"""The supervisor: runs one plan to its end, alone, and writes down every step in the journal.

    python -m nemorun.executors.local.supervisor FOLDER LOCK_FD

The launcher hands over the lock on the folder as an open file. Whoever finds the lock free knows that the
supervisor is gone. Should it die, its ranks see the end of a pipe that only it could write to and end
themselves, and its guard, a process forked before anything else starts, brings the journal to its end.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nemorun.executors.local import processes
from nemorun.executors.local.attempt import Attempt, Outcome
from nemorun.executors.local.environment import cpus, task_environment
from nemorun.executors.local.gpus import GpuLocks, inventory
from nemorun.executors.local.journal import Journal
from nemorun.executors.local.plan import Plan, TaskPlan
from nemorun.executors.local.reconcile import reconcile
from nemorun.job import JobState, Reason

#: A task that is preempted again and again is given up in the end.
MAX_PREEMPTIONS = 20
_LONGEST_BACKOFF = 60.0
_GPU_INTERVAL = 0.2
#: How often it looks whether its record is still there, in seconds.
_RECORD_INTERVAL = 10.0


@dataclass
class Task:
    plan: TaskPlan
    attempts: int = 0
    preemptions: int = 0
    not_before: float = 0.0
    waiting_for: Reason = Reason.NONE
    attempt: Attempt | None = None
    state: JobState = JobState.PENDING


class Supervisor:
    def __init__(self, folder: Path, plan: Plan, journal: Journal, lifeline: int) -> None:
        self._folder, self._plan, self._journal, self._lifeline = folder, plan, journal, lifeline
        self._tasks = {task.name: Task(task) for task in plan.tasks}
        self._secrets = frozenset(name for task in plan.tasks for name in task.secrets)
        self._parallel = plan.max_parallel or cpus()
        self._gpus = GpuLocks()
        if any(task.gpus for task in plan.tasks):
            from nemorun.workspace import home

            self._gpus = GpuLocks(home() / "gpus", inventory(os.environ))
        # Signals wake the loop by a byte in this pipe; what is to be done is then found by looking.
        self._wake, wakeup = os.pipe()
        for end in (self._wake, wakeup):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        self._cancel_all = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_terminate)
        for number in (signal.SIGCHLD, signal.SIGUSR1, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])

    def _on_terminate(self, *_: object) -> None:
        self._cancel_all = True

    def run(self) -> None:
        """Run all tasks to their end. Raises OSError if the journal cannot be written; nothing runs then."""
        try:
            self._journal.append(
                "submitted",
                pid=os.getpid(),
                identity=processes.identity(os.getpid()),
                host=os.uname().nodename,
                tasks={name: task.plan.token for name, task in self._tasks.items()},
            )
            while True:
                now = time.monotonic()
                self._obey_cancels(now)
                for task in self._tasks.values():
                    if task.attempt and task.attempt.step(now):
                        self._attempt_ended(task, task.attempt, task.attempt.outcome(), now)
                while self._start_what_can(now):
                    pass
                if all(task.state.ended for task in self._tasks.values()):
                    return
                self._sleep()
        except OSError as error:
            self._give_up(f"the supervisor could not go on: {error}")
            raise
        finally:
            for task in self._tasks.values():
                if task.attempt:
                    task.attempt.kill()

    def _sleep(self) -> None:
        now = time.monotonic()
        deadlines = [task.attempt.next_deadline(now) for task in self._tasks.values() if task.attempt]
        deadlines += [task.not_before for task in self._tasks.values() if task.waiting_for == Reason.BACKOFF]
        if any(task.waiting_for == Reason.RESOURCES and task.plan.gpus for task in self._tasks.values()):
            deadlines.append(now + _GPU_INTERVAL)  # another run's end sends us no signal
        known = [deadline for deadline in deadlines if deadline is not None]
        select.select([self._wake], [], [], max(0.0, min([now + _RECORD_INTERVAL, *known]) - now))
        with suppress(BlockingIOError):
            os.read(self._wake, 4096)

    def _obey_cancels(self, now: float) -> None:
        if self._journal.is_deleted():
            self._cancel_all = True  # nobody can see this run, or cancel it, any more
        names = set(self._tasks) if self._cancel_all else set()
        with suppress(FileNotFoundError):
            names |= {path.name for path in (self._folder / "cancel").iterdir()}
        for task in (self._tasks[name] for name in self._tasks if name in names):
            if task.attempt:
                task.attempt.stop("cancelled", now)
            elif not task.state.ended:
                again = " again" if task.attempts else ""
                message = f"it was cancelled before it started{again}"
                self._end(task, JobState.CANCELLED, Reason.CANCELLED, message)

    def _start_what_can(self, now: float) -> bool:
        """Start, or end, waiting tasks; True if one ended, which may decide about others."""
        free = self._parallel - sum(1 for task in self._tasks.values() if task.attempt and not task.plan.gpus)
        for task in self._tasks.values():
            if task.attempt or task.state.ended:
                continue
            dependencies = [self._tasks[name] for name in task.plan.dependencies]
            failed = [one for one in dependencies if one.state.ended and one.state != JobState.SUCCEEDED]
            if failed:
                what = "was cancelled" if failed[0].state == JobState.CANCELLED else "failed"
                message = f"its dependency '{failed[0].plan.name}' {what}"
                self._end(task, JobState.FAILED, Reason.DEPENDENCY_FAILED, message)
                return True
            if pending := [one.plan.name for one in dependencies if not one.state.ended]:
                self._wait(task, Reason.DEPENDENCY, f"waits for '{pending[0]}'")
            elif now < task.not_before:
                continue
            elif task.plan.gpus:
                gpus = self._gpus.take(task.plan.gpus)
                if gpus is None:
                    self._wait(task, Reason.RESOURCES, f"waits for free GPUs: {task.plan.gpus}")
                elif not self._start(task, gpus, now):
                    return True
            elif free > 0:
                free -= 1
                if not self._start(task, [], now):
                    return True
            else:
                self._wait(task, Reason.RESOURCES, f"waits for another task: {self._parallel} run at once")
        return False

    def _wait(self, task: Task, reason: Reason, message: str) -> None:
        if task.waiting_for != reason:
            task.waiting_for = reason
            self._journal.append("waiting", task=task.plan.name, reason=reason, message=message)

    def _start(self, task: Task, gpus: list[str], now: float) -> bool:
        """Start an attempt; False if that failed."""
        task.attempts += 1
        task.waiting_for = Reason.NONE
        self._journal.append("starting", task=task.plan.name, attempt=task.attempts)
        environment = task_environment(task.plan, task.attempts, os.environ, self._secrets)
        attempt = task.attempt = Attempt(task.plan, task.attempts, self._plan.grace_period, gpus)
        try:
            attempt.start(environment, self._lifeline, now)
        except OSError as error:
            outcome = Outcome(Reason.NODE_FAILURE, f"it could not be started: {error}", None)
            self._attempt_ended(task, attempt, outcome, now)
            return False
        self._journal.append(
            "started",
            task=task.plan.name,
            attempt=task.attempts,
            ranks=[(rank.process.pid, rank.identity) for rank in attempt.ranks],
        )
        return True

    def _attempt_ended(self, task: Task, attempt: Attempt, outcome: Outcome, now: float) -> None:
        task.attempt = None
        self._gpus.give_back(attempt.gpus)
        self._journal.append(
            "attempt ended",
            task=task.plan.name,
            attempt=task.attempts,
            codes=[rank.code for rank in attempt.ranks],
            exit_code=outcome.exit_code,
            failed_rank=outcome.failed_rank,
            reason=outcome.reason,
            message=outcome.message,
        )
        if outcome.reason == Reason.NONE:
            self._end(task, JobState.SUCCEEDED, Reason.NONE, "")
        elif outcome.reason == Reason.CANCELLED:
            self._end(task, JobState.CANCELLED, Reason.CANCELLED, outcome.message)
        elif not self._again(task, outcome, now):
            attempts = f" ({task.attempts} attempts)" if task.attempts > 1 else ""
            self._end(task, JobState.FAILED, outcome.reason, outcome.message + attempts)

    def _again(self, task: Task, outcome: Outcome, now: float) -> bool:
        """Does it get another attempt? Then it waits for it."""
        failures = task.attempts - task.preemptions
        if outcome.reason == Reason.PREEMPTED:
            if task.preemptions == MAX_PREEMPTIONS:
                return False
            task.preemptions += 1
            pause = self._plan.backoff
        elif failures > task.plan.retries:
            return False
        else:
            pause = min(self._plan.backoff * 2 ** (failures - 1), _LONGEST_BACKOFF)
        task.not_before = now + pause
        self._wait(task, Reason.BACKOFF, f"{outcome.message}; starts again in {pause:g} s")
        return True

    def _end(self, task: Task, state: JobState, reason: Reason, message: str) -> None:
        task.state, task.waiting_for = state, Reason.NONE
        self._journal.append("ended", task=task.plan.name, state=state, reason=reason, message=message)

    def _give_up(self, message: str) -> None:
        """The journal cannot be written, or the like: end all ranks, and say so if there is room again."""
        for task in self._tasks.values():
            if task.attempt:
                task.attempt.stop("cancelled", time.monotonic())
        for task in self._tasks.values():
            while task.attempt and not task.attempt.step(time.monotonic()):
                time.sleep(0.02)
            task.attempt = None
        for task in self._tasks.values():
            if not task.state.ended:
                self._end(task, JobState.FAILED, Reason.NODE_FAILURE, message)


def _fork_guard(folder: Path, lock: int) -> tuple[int, int]:
    """Fork the process that outlives us; returns the lifeline's reading end and that process's pid."""
    lifeline, ours = os.pipe()
    guard = os.fork()  # nothing but this thread exists yet
    if guard:
        return lifeline, guard
    try:
        os.setsid()
        os.close(lock)
        os.close(ours)
        os.read(lifeline, 1)
        while not reconcile(folder):
            time.sleep(0.01)
    except OSError as error:
        print(f"the journal could not be brought to its end: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(0)


def main() -> None:
    folder, lock = Path(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(lock, False)
    lifeline, guard = _fork_guard(folder, lock)
    plan = Plan.loads((folder / "plan.json").read_bytes().decode(errors="surrogateescape"))
    try:
        Supervisor(folder, plan, Journal(folder / "journal.jsonl"), lifeline).run()
    except OSError as error:
        sys.exit(f"the supervisor could not go on: {error}")
    os.kill(guard, signal.SIGKILL)
    os.waitpid(guard, 0)


if __name__ == "__main__":
    main()
