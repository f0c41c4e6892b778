"""What a cluster says of itself, and what is refused before anything is submitted."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from nemorun.errors import SubmitError
from nemorun.executors.base import Check
from nemorun.executors.slurm import SlurmExecutor
from nemorun.executors.slurm.checks import _of_place
from nemorun.executors.slurm.facts import Facts, gpus_of, parse
from nemorun.executors.slurm.limits import components, problems
from nemorun.executors.slurm.submission import explain, place_problems, refuse
from nemorun.job import JobSpec, Resources

from .conftest import SlurmBench

#: As Slurm 23.11 of a site with two kinds of nodes, a private partition and a QOS for long jobs answers.
SITE = """\
=== job_dir
/scratch/ann/nemorun
writable
734003200
=== have
lib/0f3a
=== config
AccountingStorageEnforce = associations,limits,qos,safe
AccountingStorageType   = accounting_storage/slurmdbd
MaxArraySize            = 4001
SchedulerParameters     = bf_continue,max_array_tasks=1000,bf_window=2880
SLURM_VERSION           = 23.11.10
ClusterName             = tall
=== partitions
PartitionName=gpu AllowGroups=ALL AllowAccounts=ALL DenyQos=slow Default=YES QoS=N/A \
DefaultTime=01:00:00 MaxNodes=16 MaxTime=1-00:00:00 Nodes=g[01-32] State=UP TotalCPUs=4096 TotalNodes=32
PartitionName=cpu AllowGroups=ALL DenyAccounts=ml AllowQos=ALL Default=NO MaxNodes=UNLIMITED \
MaxTime=UNLIMITED State=UP TotalCPUs=640 TotalNodes=10
PartitionName=vip AllowGroups=ALL AllowAccounts=boss,chief AllowQos=ALL Default=NO MaxNodes=UNLIMITED \
MaxTime=UNLIMITED State=UP TotalCPUs=128 TotalNodes=1

=== nodes
gpu|24|128|1031000|gpu:a100:4(S:0-1)
gpu|8|192|2063000|gpu:h100:8(S:0-1),nvme:no_consume:2
cpu|10|64|257000+|(null)
vip|1|128|1031000|gpu:a100:4
=== accounts
ml|tall|ml||normal,slow|
ml|tall|ops|cpu|normal|12:00:00
ml|small|other||normal|
=== qos
normal||DenyOnLimit
slow|7-00:00:00|PartitionTimeLimit
secret||
=== python
Python 3.11.2
"""


def asked(**options: str | int) -> list[str]:
    return problems({name.replace("_", "-"): str(value) for name, value in options.items()}, parse(SITE))


def test_facts_of_a_site() -> None:
    facts = parse(SITE)
    assert (facts.job_dir, facts.blocked, facts.free) == ("/scratch/ann/nemorun", None, 734003200 * 1024)
    assert facts.have == {"lib/0f3a"}
    assert (facts.version, facts.max_array_size, facts.default_partition) == ("23.11.10", 1000, "gpu")
    assert facts.associations is not None
    assert [one.account for one in facts.associations] == ["ml", "ops"]  # not those of another cluster
    assert facts.python == "Python 3.11.2"


def test_facts_of_a_site_without_accounting() -> None:
    text = SITE[: SITE.index("=== accounts")].replace("/slurmdbd", "/none")
    facts = parse(text)
    assert facts.associations is None and facts.python is None
    assert problems({"account": "whatever", "qos": "any"}, facts) == []


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("(null)", {}),
        ("gpu:8", {"": 8}),
        ("gpu", {"": 1}),
        ("gpu:h100:8(S:0-1)", {"h100": 8}),
        ("gpu:a100:2(S:0),gpu:t4:1(S:1),nvme:4", {"a100": 2, "t4": 1}),
    ],
)
def test_gpus_in_generic_resources(gres: str, gpus: dict[str, int]) -> None:
    assert gpus_of(gres) == gpus


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"account": "ML", "partition": "gpu", "time": "24:00:00", "nodes": 16, "qos": "normal"},
        {"partition": "cpu,gpu", "gpus_per_node": 8, "nodes": 8},  # gpu has such
        {"partition": "cpu", "account": "ops", "time": "10:00:00", "mem": "200G"},
        {"gres": "gpu:h100:8", "ntasks_per_node": 8, "cpus_per_task": 24},
        {"mem_per_gpu": "100G", "gpus_per_node": 8},
    ],
)
def test_what_a_cluster_can_run(options: dict[str, Any]) -> None:
    assert asked(**options) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"partition": "gup"}, ["partition='gup'", "gpu, cpu, vip", "did you mean 'gpu'?"]),
        ({"partition": "gpu,gpx"}, ["partition='gpx'"]),
        ({"account": "mll"}, ["account='mll'", "ml, ops", "did you mean 'ml'?"]),
        ({"account": "other"}, ["account='other'", "ml, ops"]),
        ({"account": "ops"}, ["account='ops'", "these partitions only: cpu"]),
        ({"partition": "cpu"}, ["account='ml'", "partition 'cpu' is not open to it"]),
        ({"partition": "vip"}, ["account='ml'", "only to boss, chief"]),
        ({"qos": "norml"}, ["qos='norml'", "normal, slow", "did you mean 'normal'?"]),
        ({"qos": "secret"}, ["qos='secret'", "account 'ml' may not use it", "normal, slow"]),
        ({"qos": "slow"}, ["qos='slow'", "partition 'gpu' does not take it"]),
        ({"time": "1-00:00:01"}, ["time=1-00:00:01", "at most 1-00:00:00"]),
        ({"time": "UNLIMITED"}, ["time=UNLIMITED", "at most 1-00:00:00"]),
        (
            {"account": "ops", "partition": "cpu", "time": "13:00:00"},
            ["account 'ops' allows at most 12:00:00"],
        ),
        ({"nodes": 17}, ["nodes=17", "at most 16 for one job"]),
        ({"nodes": 11, "partition": "cpu", "account": "ops"}, ["nodes=11", "partition 'cpu' has 10"]),
        ({"gpus_per_node": 9}, ["9 GPUs on each node", "more than 8"]),
        ({"gpus_per_node": "a100:8"}, ["8 GPUs of type a100 on each node", "more than 4"]),
        ({"gpus_per_task": 2, "ntasks_per_node": 5}, ["10 GPUs on each node"]),
        ({"gpus_per_node": 8, "nodes": 9}, ["nodes=9", "only 8 nodes"]),
        ({"ntasks_per_node": 4, "cpus_per_task": 60}, ["240 CPUs on each node", "more than 192"]),
        ({"mem": "3T"}, ["3145728 MB of memory", "more than 2063000"]),
        ({"mem_per_gpu": "300G", "gpus_per_node": 8}, ["2457600 MB of memory"]),
    ],
)
def test_what_would_fail_or_wait_for_ever(options: dict[str, Any], words: list[str]) -> None:
    found = asked(**options)
    assert len(found) == 1 and all(word in found[0] for word in words), found


def test_who_has_no_account_is_told() -> None:
    nobody = parse(SITE.replace("ml|tall|ml||normal,slow|\nml|tall|ops|cpu|normal|12:00:00\n", ""))
    assert "no account on this cluster" in problems({}, nobody)[0]
    several = parse(SITE.replace("\nml|tall", "\n|tall"))
    assert "account is not set" in problems({}, several)[0]


def test_options_are_read_from_the_script() -> None:
    script = "#!/bin/bash -l\n#SBATCH --nodes=2\n#SBATCH -p gpu\n#SBATCH --comment='a b'\n\n#SBATCH hetjob\n"
    script += "#SBATCH --mem=4G\n# a comment\nTASK=x\n#SBATCH --nodes=99\n"
    assert components(script) == [{"nodes": "2", "partition": "gpu", "comment": "a b"}, {"mem": "4G"}]
    (odd,) = components('#SBATCH --comment="a\u2028b\x0bc"\n#SBATCH --nodes=2\n')  # lines for Python alone
    assert odd == {"comment": "a\u2028b\x0bc", "nodes": "2"}


def test_each_task_is_judged_by_what_it_asks_for() -> None:
    executor = SlurmExecutor(array=False)
    sizes = {"small": 1, "large": 17, "larger": 17, "small-too": 1}
    jobs = [
        JobSpec(name, f"x.{name}", f"/r/e-x/tasks/{name}", Resources(nodes=nodes), command=("true",))
        for name, nodes in sizes.items()
    ]
    with pytest.raises(SubmitError) as caught:
        refuse(executor, executor.render(jobs), parse(SITE), "tall")
    words = "nodes=17: partition 'gpu' allows at most 16 for one job"
    assert str(caught.value) == f"tall: task 'large': {words}; task 'larger': {words}; nothing was submitted"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"blocked": "/root"}, "you may not write to /root"),
        ({"job_dir": "nemorun"}, "must begin with /"),
        ({"free": 4096}, "is full"),
        ({"python": ""}, "there is no such Python"),
        ({"python": "Python 3.9.18"}, "Python 3.9.18, which is too old"),
        ({"python": "Python 2.7.5"}, "too old"),
    ],
)
def test_a_place_that_cannot_be_used(changes: dict[str, Any], words: str) -> None:
    (problem,) = place_problems(SlurmExecutor(), replace(parse(SITE), **changes))
    assert words in problem


def test_a_refusal_of_sbatch_keeps_its_words_and_adds_what_to_do() -> None:
    said = ["sbatch: error: Batch job submission failed: Requested node configuration is not available"]
    text = explain("train", said, parse(SITE), "tall")
    assert "tall: Slurm refused 'train': Batch job submission failed: Requested node" in text
    assert "see `sinfo -Nel`" in text
    said = ["sbatch: error: Batch job submission failed: Invalid account or account/partition combination"]
    assert "you have account ml, ops" in explain("train", said, parse(SITE), "tall")


# On the cluster


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"partition": "bacht"}, "did you mean 'batch'"),
        ({"account": "product"}, "account='product'.*you have research"),
        ({"qos": "hihg"}, "did you mean 'high'"),
        ({"time": "5:00:00"}, "at most 04:00:00"),
        ({"nodes": 3, "partition": "interactive"}, "at most 2"),
        ({"gpus_per_node": 9}, "9 GPUs on each node.*more than 8"),
        ({"mem": "9T"}, "MB of memory"),
        ({"venv": "/no/such"}, "venv='/no/such'.*no such Python"),
        ({"job_dir": "$NO_SUCH/x"}, "NO_SUCH is not set on login"),
        ({"job_dir": "/root/x"}, "may not write to /root"),
    ],
)
def test_a_request_that_cannot_run_is_refused(
    slurm: Callable[..., SlurmBench], fields: dict[str, Any], words: str
) -> None:
    bench = slurm(**fields)
    bench.add(command=("true",))
    with pytest.raises(SubmitError, match=f"(?s){words}.*nothing was submitted"):
        bench.submit()
    assert not bench.queued()


def failing(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.message for check in checks if not check.ok}


def test_a_cluster_that_can_be_used(slurm: Callable[..., SlurmBench]) -> None:
    checks = {check.name: check for check in slurm(venv="~/../../usr").executor.check()}
    assert not failing(list(checks.values()))
    torch = checks["torch"]  # the system's Python may lack it
    assert torch.advice == ("set venv to a virtual environment that has it" in torch.message)
    assert "login" in checks["connection"].message
    assert "your accounts: research; your QOS: high, low, normal" in checks["accounting"].message
    assert "8 h100" in checks["GPUs"].message and "Python 3." in checks["Python"].message


def test_a_cluster_that_cannot_be_used(slurm: Callable[..., SlurmBench]) -> None:
    odd = slurm("bob", partition="bathc", container_image="image", job_dir="/root/x").executor
    found = failing(odd.check())
    assert set(found) == {"request", "containers", "job_dir"}
    assert "did you mean 'batch'" in found["request"] and "no --container-image" in found["containers"]
    assert set(failing(slurm(tunnel="no-such-host.invalid").executor.check())) == {"connection"}
    assert set(failing(slurm(nodes=-1).executor.check())) == {"fields"}


def test_facts_of_the_rig_are_read_by_one_command(bench: SlurmBench, monkeypatch: pytest.MonkeyPatch) -> None:
    from nemorun.executors.slurm.submission import probe

    commands = []
    run = bench.cluster.connection.run
    monkeypatch.setattr(
        bench.cluster.connection, "run", lambda *a, **k: commands.append(a[0]) or run(*a, **k)
    )
    facts: Facts = probe(bench.cluster, ("lib/0",), "python3")
    assert len(commands) == 1
    assert facts.max_array_size == 1001 and facts.have == set()
    limits = {name: one.max_time for name, one in facts.partitions.items()}
    assert limits == {"batch": 14400, "interactive": 7200}
    assert facts.associations and facts.default_account == "research"
    assert bench.on_login(f"ls -d {bench.executor.job_dir} 2>&1 || :").startswith("ls: ")  # it only reads


def test_the_interpreter_on_a_login_node_is_the_launchers_own() -> None:
    facts = replace(parse(SITE), python=None, more={})
    lines = {line.name: line for line in _of_place(SlurmExecutor(), facts)}
    assert lines["Python"].message == f"{sys.executable}, which runs nemorun here"
    lines = {line.name: line for line in _of_place(SlurmExecutor(modules=["python/3.12"]), facts)}
    assert "seen when a job runs" in lines["Python"].message
