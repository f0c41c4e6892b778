"""Processes: who they are, whether they have ended, and how to end all that a task has started.

Linux's /proc and waitid(WNOWAIT) are used where they exist; without them the same functions know less.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc") if Path("/proc/self/stat").exists() else None

#: Set in every rank's environment to its job's token: finds processes that left the rank's group.
TOKEN_VARIABLE = "NEMORUN_TOKEN"


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on (field 3 of proc(5) is index 0)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def identity(pid: int) -> str | None:
    """A text that no other process has, even after the pid was used again; None if it has ended."""
    if _PROC:
        fields = _stat(pid)
        if fields is None or fields[0] in "ZX":
            return None
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}:{fields[19]}"
    line = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.split(maxsplit=1)
    return None if len(line) < 2 or line[0].startswith("Z") else line[1].strip()


def has_ended(child: subprocess.Popen[bytes]) -> bool:
    """Has our child ended? It stays unreaped, so that its pid, and its group's number, stay taken."""
    if hasattr(os, "waitid"):
        return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return child.poll() is not None  # macOS before Python 3.13 can only reap


def _pids() -> Iterator[int]:
    if _PROC:
        yield from (int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208


def group_is_alive(pgid: int) -> bool:
    """Does the group have a member besides zombies? Without /proc nobody can tell: False."""
    for pid in _pids():
        fields = _stat(pid)
        if fields and int(fields[2]) == pgid and fields[0] not in "ZX":
            return True
    return False


def kill_group(pgid: int) -> None:
    # macOS answers PermissionError for a group of zombies.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pgid, signal.SIGKILL)


def _kill_if_marked(pid: int, mark: bytes) -> bool:
    """Kill the process if its environment holds the mark."""
    try:
        # A pidfd, taken before the look, stays with this very process; kernels before 5.3 have none.
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    except OSError:
        handle = None
    try:
        if mark not in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return False
        if handle is None:
            os.kill(pid, signal.SIGKILL)
        else:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        return True
    except OSError:  # ended meanwhile, or another user's
        return False
    finally:
        if handle is not None:
            os.close(handle)


def kill_marked(token: str, patience: float = 5.0) -> None:
    """Kill every process with the job's token in its environment, again until none is left.

    `patience` bounds the wait, in seconds, for a process that even SIGKILL cannot end at once.
    """
    mark = f"{TOKEN_VARIABLE}={token}".encode()
    give_up = time.monotonic() + patience
    # Rounds, until one finds nothing: a process may fork while it is looked at.
    while sum(_kill_if_marked(pid, mark) for pid in _pids() if pid != os.getpid()):
        if time.monotonic() > give_up:
            return
        time.sleep(0.005)


def kill_leader(pid: int, known: str, patience: float = 5.0) -> None:
    """Kill the group of a leader that is not our child, if the pid still is the process it was, and wait."""
    give_up = time.monotonic() + patience
    while identity(pid) == known and time.monotonic() < give_up:
        kill_group(pid)
        time.sleep(0.005)


def out_of_memory_kills() -> int | None:
    """How often the kernel has killed for want of memory so far, in our cgroup or else on this machine."""
    with contextlib.suppress(OSError):
        group = Path("/proc/self/cgroup").read_text().partition("0::")[2].strip()
        count = _counter(Path(f"/sys/fs/cgroup{group}/memory.events"))
        if count is not None:
            return count
    return _counter(Path("/proc/vmstat"))


def _counter(path: Path) -> int | None:
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return None
