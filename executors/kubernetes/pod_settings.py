"""What a manifest tells the supervisor of a pod in its environment, and how that writes the pod's log."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nemorun.job import EXIT_RESUME


@dataclass(frozen=True)
class Settings:
    """What the manifest says of this pod, in its environment."""

    nodes: int
    ranks: int
    """Of each node."""
    node: int
    host: str
    """Name of node 0."""
    port: int
    """Of torch's rendezvous; the supervisors meet at the one below."""
    token: str
    run_dir: Path
    start_timeout: float
    grace_period: float
    """Seconds that ranks have to save their state."""
    distributed: bool
    exit_resume: int
    library: str

    @classmethod
    def of(cls, env: Mapping[str, str]) -> Settings:
        return cls(
            nodes=int(env["NEMORUN_NODES"]),
            ranks=int(env["NEMORUN_RANKS"]),
            node=int(env.get("NEMORUN_NODE", "0")),
            host=env.get("NEMORUN_HOST", "localhost"),
            port=int(env.get("NEMORUN_PORT", "29500")),
            token=env["NEMORUN_TOKEN"],
            run_dir=Path(env["NEMORUN_RUN_DIR"]),
            start_timeout=float(env.get("NEMORUN_START_TIMEOUT", "1800")),
            grace_period=float(env.get("NEMORUN_GRACE_PERIOD", "60")),
            distributed=env.get("NEMORUN_DISTRIBUTED") == "1",
            exit_resume=int(env.get("NEMORUN_EXIT_RESUME", EXIT_RESUME)),
            library=env.get("NEMORUN_LIBRARY", "/nemorun/lib"),
        )


def say(text: str) -> None:
    write(f"nemorun: {text}\n".encode())


def write(text: bytes) -> None:
    """Into the pod's log, if someone still reads it."""
    with contextlib.suppress(OSError):
        os.write(1, text)
