"""Slurm's configuration files."""

from rig.layout import GPUS, LAN, QOS, USERS, node_ip

GRES_CONF = f"AutoDetect=off\nName=gpu Type=h100 File=/run/nvidia/nvidia[0-{GPUS - 1}]\n"
CGROUP_CONF = """\
CgroupPlugin=cgroup/v1
CgroupAutomount=no
ConstrainCores=no
ConstrainDevices=no
ConstrainRAMSpace=yes
ConstrainSwapSpace=no
"""
SLURMDBD_CONF = """\
DbdHost=ctl
SlurmUser=slurm
AuthType=auth/munge
PidFile=/run/slurm/slurmdbd.pid
LogFile=/var/log/slurm/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StorageLoc=slurm_acct_db
"""


def slurm_conf(nodes, flat, cgroup):
    if flat:  # every slurmd on the one host "compute", told apart by port
        lines = [
            f"NodeName={n} NodeHostname=compute NodeAddr={node_ip(0)} Port={17000 + i}"
            for i, n in enumerate(nodes)
        ]
    else:
        lines = [f"NodeName={n} NodeAddr={node_ip(i)}" for i, n in enumerate(nodes)]
    return (
        f"""\
ClusterName=slr
SlurmctldHost=ctl({LAN["ctl"]})
SlurmUser=slurm
AuthType=auth/munge
CredType=cred/munge
AuthInfo=cred_expire=10
StateSaveLocation=/var/lib/slurm/slurmctld
SlurmdSpoolDir=/var/spool/slurmd/%n
SlurmctldPidFile=/run/slurm/slurmctld.pid
SlurmdPidFile=/run/slurmd-%n.pid
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd-%n.log
SlurmctldDebug=info
SlurmdDebug=info
MailProg=/bin/true
MpiDefault=none
SwitchType=switch/none

# Processes.  linuxproc + task/none needs no cgroups; cgroups bring memory limits and the state OUT_OF_MEMORY.
ProctrackType=proctrack/{"cgroup" if cgroup else "linuxproc"}
TaskPlugin=task/{"cgroup" if cgroup else "none"}
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
PropagateResourceLimitsExcept=MEMLOCK

# The nodes are bigger than this machine: take slurm.conf's word for their size.
SlurmdParameters=config_overrides
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=8000
TopologyPlugin=topology/tree

# Short timers, so that failures show in seconds.
ReturnToService=1
SlurmdTimeout=15
SlurmctldTimeout=15
MessageTimeout=10
KillWait=12
BatchStartTimeout=20
MinJobAge=300
InactiveLimit=0
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=50000,bf_interval=2,sched_interval=5

# Accounting, multi-tenancy, preemption.
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={LAN["ctl"]}
AccountingStorageEnforce=associations,limits,qos
AccountingStorageTRES=gres/gpu,gres/gpu:h100
AccountingStoreFlags=job_comment,job_script,job_env
PriorityType=priority/multifactor
PriorityWeightQOS=10000
PriorityWeightAge=1000
PreemptType=preempt/qos
PreemptMode=REQUEUE

NodeName=DEFAULT Sockets=2 CoresPerSocket=56 ThreadsPerCore=2 RealMemory=2000000 State=UNKNOWN
NodeName=DEFAULT Gres=gpu:h100:{GPUS}
"""
        + "\n".join(lines)
        + """
PartitionName=batch Nodes=ALL Default=YES DefaultTime=00:30:00 MaxTime=04:00:00 State=UP
PartitionName=interactive Nodes=ALL MaxNodes=2 PriorityTier=10 DefaultTime=00:30:00 MaxTime=02:00:00 State=UP
"""
    )


def topology_conf(nodes):
    """Leaf switches of four nodes below spine switches of eight leaves, all spines below one core switch."""
    leaves = [nodes[i : i + 4] for i in range(0, len(nodes), 4)]
    names = [f"leaf{i + 1:02}" for i in range(len(leaves))]
    spines = [names[i : i + 8] for i in range(0, len(names), 8)]
    lines = [f"SwitchName={name} Nodes={','.join(leaf)}" for name, leaf in zip(names, leaves, strict=True)]
    lines += [f"SwitchName=spine{i + 1:02} Switches={','.join(group)}" for i, group in enumerate(spines)]
    if len(spines) > 1:
        lines.append("SwitchName=core Switches=" + ",".join(f"spine{i + 1:02}" for i in range(len(spines))))
    return "\n".join(lines) + "\n"


def accounts_sh():
    """Slurm accounting: QOS high preempts normal and low; low gets 20 s of grace; a user of each account."""
    lines = [
        "sacctmgr -i -Q add cluster slr",
        "sacctmgr -i -Q modify qos normal set Priority=10",
        "sacctmgr -i -Q add qos low Priority=0 GraceTime=20",
        "sacctmgr -i -Q add qos high Priority=100 Preempt=normal,low",
    ]
    lines += [f"sacctmgr -i -Q add account {a} Cluster=slr" for a in sorted({a for _, a in USERS.values()})]
    lines += [
        f"sacctmgr -i -Q add user {u} Account={a} Cluster=slr QOS={','.join(QOS)} DefaultQOS=normal"
        for u, (_, a) in USERS.items()
    ]
    return "\n".join(lines) + "\n"
