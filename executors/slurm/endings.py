"""How a job died, in plain words: which rank, which node, by whom."""

from __future__ import annotations

import json
import re
import signal

from nemorun.executors.slurm.evidence import Evidence
from nemorun.executors.slurm.parse import Row
from nemorun.job import Reason

_SRUN_TASK = re.compile(r"srun: error: (?P<node>\S+): tasks? (?P<ranks>[\d,-]+): (?P<what>.+)")
_LOST_NODE = re.compile(r"(?:NODE FAILURE|Node failure on) ?(?P<node>[\w.-]*)")


def first_failure(seen: Evidence, code: int | None) -> tuple[Reason, str]:
    """Which rank failed first, and of what."""
    reason = Reason.SIGNAL if code and 128 < code < 193 else Reason.EXIT_CODE  # 255 is what srun refuses with
    if seen.failure:
        rank, _, text = seen.failure.partition(" ")
        try:
            return reason, f"rank {rank}: {json.loads(text)['error']}"
        except (ValueError, KeyError, TypeError):
            pass  # it was cut off (a full disk, say): srun may know
    # srun ends the other ranks for the first one that failed; those say nothing
    told = [found for line in seen.said if (found := _SRUN_TASK.search(line))]
    own = [found for found in told if not found["what"].startswith(("Terminated", "Killed"))]
    if found := next(iter(own[-1:] or told), None):
        what = found["what"].strip().replace("Exited with exit code", "ended with")
        ranks = ("ranks " if re.search("[,-]", found["ranks"]) else "rank ") + found["ranks"]
        if what == "Out Of Memory":
            return Reason.OUT_OF_MEMORY, f"{ranks} on {found['node']}"
        if not what.startswith("ended with"):
            reason = Reason.SIGNAL
        between = " " if what.startswith("ended with") else ": "
        return reason, f"{ranks} on {found['node']}{between}{what}"
    return reason, f"its batch script ended with {_code(code)}"


def as_a_shell_says(code: int | None, reason: Reason) -> int | None:
    """128 + n for signal n; srun ends with n alone."""
    return code + 128 if reason is Reason.SIGNAL and code and code < 65 else code


def _code(code: int | None) -> str:
    if code is None:
        return "an exit code that Slurm does not tell"
    if code > 128:
        try:
            return f"{code} ({signal.Signals(code - 128).name})"
        except ValueError:
            pass
    return str(code)


def details(seen: Evidence, word: str, row: Row | None = None) -> str:
    """The node and the rank, where something tells."""
    if word == "node-failure":
        lost = [event.words[1] for event in seen.journal if event.kind == "lost" and len(event.words) > 1]
        said = [found["node"] for line in seen.said if (found := _LOST_NODE.search(line)) and found["node"]]
        said += [node for node in lost if node != "-"]
        if row and row.failed_node:
            return row.failed_node
        return said[0] if said else f"one of {row.nodes}" if row and row.nodes else ""
    if word == "out-of-memory":
        told = [found for line in seen.said if (found := _SRUN_TASK.search(line))]
        where = [f"rank {found['ranks']} on {found['node']}" for found in told if "Memory" in found["what"]]
        return "; ".join([*where[-1:], "ask for more with mem"])
    if word == "time-limit":
        limit = [row.limit] if row and row.limit else []
        return "; ".join([*limit, "ask for more with time"])
    if word in ("preempted", "requeued", "unknown") and not row:
        times = sum(event.kind in ("requeued", "lost") for event in seen.journal)
        return f"{times} times before; it is not started again" if times else ""
    return ""


def cancelled_by(seen: Evidence) -> str:
    who = seen.accounted[-1].by if seen.accounted else ""
    if seen.cancel_ordered or not who:
        return ""
    return f"by {seen.users.get(who, who)}"


def failed_dependency(row: Row) -> str:
    jobs = re.findall(r"(\d+(?:_\d+|_\*)?)\(failed\)", row.dependency)
    if jobs:
        return f"job {', '.join(jobs)} did not succeed"
    return "a job that it waits for did not succeed"
