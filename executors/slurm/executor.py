"""The Slurm executor's fields, and who answers for what it is asked."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Literal, TypedDict

from nemorun.errors import ConfigError
from nemorun.executors.base import Check, Executor, LogChunk, LogOffsets, Rendered
from nemorun.job import JobRef, JobSpec, JobStatus, Resources

if TYPE_CHECKING:
    from nemorun.executors.slurm.script import SlurmRendered


class HetGroup(TypedDict, total=False):
    """A further component of a heterogeneous job; what is left out is the executor's."""

    nodes: int
    ntasks_per_node: int
    gpus_per_node: int
    cpus_per_task: int
    mem: str | int
    partition: str
    constraint: str
    gres: str


@dataclass
class SlurmExecutor(Executor):
    """Runs tasks on a Slurm cluster."""

    type: ClassVar[str] = "slurm"
    pace: ClassVar[tuple[float, float]] = (0.5, 5.0)

    tunnel: str = "local"
    """Where sbatch is: "local", or a host: a name of ~/.ssh/config, user@host, host:port."""
    transport: Literal["paramiko", "openssh"] | None = None
    """How it is reached; by default openssh where a live ControlMaster exists, else paramiko."""
    ssh_config: str | None = None
    """Another file than ~/.ssh/config."""
    job_dir: str = "~/nemorun"
    """Folder of the cluster for code, logs and results, seen by all nodes; may hold ~ and its $VARIABLES."""
    query: Literal["text", "json"] = "text"
    """How squeue and sacct are asked for their answers."""

    account: str | None = None
    """Account that the time is charged to."""
    partition: str | None = None
    """Partition, or several with commas: the first that can start the job takes it."""
    qos: str | None = None
    """Quality of service."""
    reservation: str | None = None
    """Reservation, or several with commas."""
    nodes: int | None = None
    """Nodes; by default the task's."""
    ntasks_per_node: int | None = None
    """Ranks on each node; by default the task's."""
    gpus_per_node: int | None = None
    """GPUs of each node; by default the task's, or gpus_per_task times ntasks_per_node."""
    gpus_per_task: int | None = None
    """GPUs for each rank; each still sees all of its node, and LOCAL_RANK picks."""
    cpus_per_task: int | None = None
    """CPUs for each rank."""
    mem: str | int | None = None
    """Memory of each node: a number and K, M, G or T; megabytes without; 0 is all of it."""
    mem_per_gpu: str | int | None = None
    """Memory for each GPU, in place of mem."""
    time: str | int | None = None
    """Limit for one attempt: minutes, hours:minutes:seconds, days-hours ..."""
    exclusive: bool | Literal["user", "mcs"] = False
    """Share the nodes with no other job; "user": with those of the same user; "mcs": of the same label."""
    constraint: str | None = None
    """Features that the nodes must have, such as "h100&nvme"."""
    nodelist: str | None = None
    """Nodes that the job must have, such as "node[001-004]"."""
    exclude: str | None = None
    """Nodes that the job must not have."""
    gres: str | None = None
    """Generic resources of each node, such as "gpu:h100:8"; GPUs named here stand in for gpus_per_node."""
    switches: str | int | None = None
    """Most leaf switches, and how long to wait for so few: "1" or "1@2:00:00"."""
    segment: int | None = None
    """Nodes that must stand together in one block of the topology."""
    network: str | None = None
    """What the job needs of the network, as the site defines it."""
    nice: int | None = None
    """Taken off the job's priority; negative values are for administrators."""
    dependency: str | None = None
    """Jobs that are not nemorun's to wait for, such as "afterok:1234"."""
    comment: str | None = None
    """Comment of the job, behind nemorun's own."""
    signal: str | None = None
    """Signal before the time limit, "[B:|R:]SIGNAL[@seconds]"; resumable tasks get "USR2@90" without it."""
    requeue: bool = True
    """May the job be started again, after a preemption, a lost node or a failure with retries left?"""
    array: bool | int | str = True
    """Equal tasks go as one job array; a number limits how many run at once; False: one job for each."""
    het_groups: list[HetGroup] = field(default_factory=list)
    """Further components of a heterogeneous job: nodes, ntasks_per_node, partition ... of each."""

    launcher: Literal["srun", "torchrun"] = "srun"
    """srun starts every rank; torchrun: srun starts one agent a node, and that the ranks."""
    venv: str | None = None
    """Folder of a virtual environment on the cluster (in the container, if there is one)."""
    container_image: str | None = None
    """Image that the ranks run in: nvcr.io/nvidia/nemo:24.05, or a .sqsh or .sif file on the cluster."""
    container_mounts: list[str] = field(default_factory=list)
    """Folders that the container sees, "source:target[:options]"; job_dir always is."""
    container_workdir: str | None = None
    """Folder in the container that the ranks start in; by default the frozen code's."""
    container_env: list[str] = field(default_factory=list)
    """Names of variables that win over the image's own."""
    container_runtime: Literal["pyxis", "apptainer"] = "pyxis"
    """What starts the container."""
    modules: list[str] = field(default_factory=list)
    """Environment modules to load, in order."""
    setup: list[str] = field(default_factory=list)
    """Lines of bash for the batch script, before the ranks start."""
    srun_args: list[str] = field(default_factory=list)
    """Further options of srun, each a word; options that a field stands for are refused."""
    sbatch_args: list[str] = field(default_factory=list)
    """Further options of sbatch, each a line; options that a field stands for are refused."""

    def place(self) -> Hashable:
        return ("slurm", self.tunnel, self.transport, self.ssh_config, self.job_dir)

    def validate(self) -> None:
        from nemorun.executors.slurm.values import check_fields

        check_fields(self)

    def check_job(self, job: JobSpec) -> None:
        from nemorun.executors.slurm.jobs import check_job

        check_job(self, job)

    def warnings(self) -> list[str]:
        from nemorun.executors.times import time_limit

        if self.time is None or time_limit(self.time) is not None:
            return []
        return [
            f"time={self.time}: a job without a limit fits no gap of Slurm's backfill, so it waits longer"
        ]

    def resources(self, wanted: Resources | None) -> Resources:
        from nemorun.executors.slurm.jobs import resources

        return resources(self, wanted)

    def render(
        self, jobs: Sequence[JobSpec], own: Mapping[str, Executor] = MappingProxyType({})
    ) -> SlurmRendered:
        from nemorun.executors.slurm.script import render

        pairs = []
        for job in jobs:
            executor = own.get(job.name, self)
            if not isinstance(executor, SlurmExecutor):
                raise ConfigError(f"task '{job.name}': its executor is {executor!r}, which is not Slurm's")
            pairs.append((executor, job))
        return render(pairs)

    def submit(self, rendered: Rendered, secrets: Mapping[str, str]) -> dict[str, str]:
        from nemorun.executors.slurm.submission import submit

        return submit(self, rendered, secrets)

    def poll(self, refs: Sequence[JobRef]) -> dict[str, JobStatus]:
        from nemorun.executors.slurm.polling import poll

        return poll(self, refs)

    def logs(
        self, reading: Mapping[JobRef, LogOffsets], rank: int | None = None
    ) -> Iterable[tuple[JobRef, LogChunk]]:
        from nemorun.executors.slurm.reading import logs

        return logs(self, reading, rank)

    def excerpt(self, ref: JobRef) -> str:
        from nemorun.executors.slurm.reading import excerpt

        return excerpt(self, ref)

    def remote_dir(self, ref: JobRef) -> str:
        from nemorun.executors.slurm.paths import known_job_dir, remote_run_dir

        host = "" if self.tunnel == "local" else f"{self.tunnel}:"
        job_dir = known_job_dir(ref.run_dir) or self.job_dir
        return f"{host}{job_dir.rstrip('/')}/{remote_run_dir(ref.token, ref.run_dir)}"

    def cancel(self, refs: Sequence[JobRef]) -> None:
        from nemorun.executors.slurm.cancelling import cancel

        cancel(self, refs)

    def check(self) -> list[Check]:
        from nemorun.executors.slurm.checks import check

        return check(self)

    def shell(self, rendered: Rendered, secrets: Mapping[str, str]) -> int:
        from nemorun.executors.slurm.interactive import shell

        return shell(self, rendered, secrets)

    def debug(self, rendered: Rendered, secrets: Mapping[str, str], again: str) -> int:
        from nemorun.executors.slurm.interactive import debug

        return debug(self, rendered, secrets, again)

    def release(self, token: str) -> list[str]:
        from nemorun.executors.slurm.interactive import release

        return release(self, token)

    def attach(self, ref: JobRef, job: JobSpec, rank: int) -> int:
        from nemorun.executors.slurm.interactive import attach

        return attach(self, ref, job, rank)
