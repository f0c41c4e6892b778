"""Cancels tasks on a cluster: one command for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nemorun.executors.slurm.cluster import cluster_of
from nemorun.executors.slurm.paths import experiment_id, remote_run_dir
from nemorun.executors.slurm.polling import ask_anew
from nemorun.job import JobRef
from nemorun.remote.errors import RemoteError

if TYPE_CHECKING:
    from nemorun.executors.slurm.executor import SlurmExecutor


def cancel(executor: SlurmExecutor, refs: Sequence[JobRef]) -> None:
    """Returns when Slurm has taken the order over; again, it changes nothing. Raises RemoteError."""
    cluster = cluster_of(executor)
    lines = (
        f"{remote_run_dir(ref.token, ref.run_dir)} {ref.handle or '-'} {experiment_id(ref.token)}\n"
        for ref in refs
    )
    done = cluster.run(cluster.command("cancel.sh"), "".join(lines).encode(), retry=True)
    if done.returncode:
        raise RemoteError(f"{cluster.name}: not everything could be cancelled: {done.stderr.strip()}")
    ask_anew(executor)
