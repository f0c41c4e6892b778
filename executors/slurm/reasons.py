"""Slurm's reasons for a job to wait, in plain words."""

from __future__ import annotations

import re

from nemorun.executors.slurm.parse import Row
from nemorun.job import Reason

_WAIT = Reason.RESOURCES
#: The reason, without "Max", "Grp", "Per..." that many have: its words. `{...}` are fields of the row.
_REASONS = {
    "": (Reason.NONE, ""),
    "Priority": (_WAIT, "jobs of higher priority stand before it"),
    "Resources": (_WAIT, "it is next, as soon as enough nodes are free"),
    "Dependency": (Reason.DEPENDENCY, ""),
    "DependencyNeverSatisfied": (Reason.DEPENDENCY_FAILED, "a job that it waits for did not succeed"),
    "BeginTime": (Reason.NONE, "it may not start earlier"),
    "Cleaning": (Reason.NONE, "its former run is being cleaned up"),
    "JobHeldUser": (Reason.HELD, "`scontrol release {id}` lets it go"),
    "JobHeldAdmin": (Reason.HELD, "by an administrator, or after it could not be started; ask them"),
    "JobHoldMaxRequeue": (
        Reason.HELD,
        "Slurm started it too often (MaxBatchRequeue); `scontrol release {id}`",
    ),
    "JobArrayTaskLimit": (_WAIT, "as many of its array run as may at once"),
    "Reservation": (_WAIT, "its reservation has not begun"),
    "ReservationDeleted": (Reason.NEVER, "its reservation was deleted"),
    "Licenses": (_WAIT, "no licence is free"),
    "PartitionDown": (_WAIT, "partition {partition} is down"),
    "PartitionInactive": (_WAIT, "partition {partition} is not active"),
    "PartitionNodeLimit": (
        Reason.NEVER,
        "partition {partition} has or allows fewer nodes, or they are down; see sinfo",
    ),
    "PartitionTimeLimit": (
        Reason.NEVER,
        "partition {partition} does not allow {limit}; see sinfo -o '%P %l'",
    ),
    "PartitionConfig": (Reason.NEVER, "partition {partition} does not allow what it asks for"),
    "AccountNotAllowed": (Reason.NEVER, "its account may not use partition {partition}"),
    "QOSNotAllowed": (Reason.NEVER, "its QOS {qos} may not be used in partition {partition}"),
    "InvalidAccount": (Reason.NEVER, "its account is not valid"),
    "InvalidQOS": (Reason.NEVER, "its QOS {qos} is not valid"),
    "AccountingPolicy": (_WAIT, "a limit of its account or QOS is reached"),
    "QOSUsageThreshold": (_WAIT, "its QOS {qos} was used more than it may be"),
    "QOSJobLimit": (_WAIT, "QOS {qos} has as many jobs as it may"),
    "QOSResourceLimit": (_WAIT, "a limit of QOS {qos} is reached"),
    "QOSTimeLimit": (Reason.NEVER, "QOS {qos} does not allow {limit}"),
    "AssociationJobLimit": (_WAIT, "its account has as many jobs as it may"),
    "AssociationResourceLimit": (_WAIT, "a limit of its account is reached"),
    "AssociationTimeLimit": (Reason.NEVER, "its account does not allow {limit}"),
    "BadConstraints": (Reason.NEVER, "no nodes are as it asks for"),
    "NodeDown": (_WAIT, "a node that it needs is down"),
    "ReqNodeNotAvail": (_WAIT, "nodes that it needs are down, drained or reserved"),
    "Nodes_required_for_job_are_DOWN,_DRAINED_or_reserved_for_jobs_in_higher_priority_partitions": (
        _WAIT,
        "nodes that it needs are down, drained or reserved",
    ),
    "FrontEndDown": (_WAIT, "no front end is up"),
    "Prolog": (Reason.NONE, "its nodes are being made ready"),
    "SystemFailure": (Reason.HELD, "Slurm failed to start it; ask an administrator"),
    "launch_failed_requeued_held": (
        Reason.HELD,
        "it could not be started; `scontrol release {id}` tries again",
    ),
    "job_requeued_in_held_state": (Reason.HELD, "`scontrol release {id}` lets it go"),
    "FedJobLock": (Reason.NONE, "the clusters of the federation settle where it runs"),
    "BurstBufferResources": (_WAIT, "the burst buffer is full"),
    "BurstBufferStageIn": (Reason.NONE, "its data is being staged in"),
    "DeadLine": (Reason.NEVER, "it cannot end before its deadline"),
}
_THINGS = {
    "Jobs": "jobs",
    "Job": "jobs",
    "SubmitJobs": "submitted jobs",
    "Node": "nodes",
    "Nodes": "nodes",
    "Cpu": "CPUs",
    "CPU": "CPUs",
    "CPUs": "CPUs",
    "Mem": "memory",
    "Memory": "memory",
    "GRES": "GPUs or other generic resources",
    "WallDuration": "time",
    "Wall": "time",
    "CpuMinutes": "CPU minutes",
    "CPUMinutes": "CPU minutes",
    "CPURunMinutes": "CPU minutes of what runs",
    "CpuRunMinutes": "CPU minutes of what runs",
    "Billing": "billing units",
    "BillingMinutes": "billing minutes",
    "BillingRunMinutes": "billing minutes of what runs",
    "GRESMinutes": "GPU minutes",
    "GRESRunMinutes": "GPU minutes of what runs",
    "Energy": "energy",
    "License": "licences",
}
# QOSMaxJobsPerUserLimit, AssocGrpCpuLimit, AssocMaxWallDurationPerJobLimit, MaxNodePerAccount, QOSGrpGRES ...
_LIMIT = re.compile(
    r"(?P<of>QOS|Assoc)?(?P<kind>Grp|Max|Min)(?P<thing>[A-Z]\w*?)(?P<per>Per(?:User|Account|Acct|Job|Node))?(?:Limit|NotSatisfied)?"
)
_PER = {
    "PerUser": "each user",
    "PerAccount": "the account",
    "PerAcct": "the account",
    "PerJob": "one job",
    "PerNode": "each node",
}


def why_pending(row: Row) -> tuple[Reason, str]:
    """Why it waits; NEVER, where it waits for ever unless something is changed."""
    name = (
        row.reason.partition(",")[0].partition("(")[0].strip()
    )  # "ReqNodeNotAvail, UnavailableNodes:node003"
    name = name.replace(" ", "_")  # "job requeued in held state"
    if row.state in ("REQUEUE_HOLD", "SPECIAL_EXIT") and name not in _REASONS:
        name = "JobHeldAdmin"
    if name in _REASONS:
        reason, words = _REASONS[name]
        words = words.format(id=row.id, partition=row.partition, qos=row.qos, limit=row.limit or "that long")
        if nodes := re.search(r"UnavailableNodes:([\w.,\[\]-]+)", row.reason):
            words += f": {nodes[1]}"
        if name == "Dependency" and (jobs := re.findall(r":(\d+(?:_\d+)?)", row.dependency)):
            words = f"job {', '.join(jobs)}"
        return reason, words
    if found := _LIMIT.fullmatch(name):
        whose = f"QOS {row.qos}" if found["of"] == "QOS" else "its account"
        thing = _THINGS.get(found["thing"], found["thing"])
        if found["kind"] == "Min":
            return Reason.NEVER, f"{whose} takes no jobs with so little of {thing} ({name})"
        one = found["per"] in ("PerJob", "PerNode") or ("Wall" in found["thing"] and found["kind"] == "Max")
        scope = f" for {_PER[found['per']]}" if found["per"] else ""
        if one:
            return Reason.NEVER, f"it asks for more {thing} than {whose} allows{scope} ({name})"
        return _WAIT, f"the limit on {thing} of {whose}{scope} is reached ({name})"
    return Reason.NONE, f"Slurm's reason is {row.reason}"
