"""The Slurm executor's fields: wrong values are refused by name before anything connects."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

import nemorun as run
from nemorun.config import Config, loads, validate
from nemorun.config.views import field_docs
from nemorun.errors import ConfigError
from nemorun.executors.configured import as_config, executor
from nemorun.executors.slurm import HetGroup, SlurmExecutor
from nemorun.job import JobSpec, Resources

COUNTS = ("nodes", "ntasks_per_node", "gpus_per_task", "cpus_per_task", "segment")
NAMES = ("account", "partition", "qos", "reservation", "nodelist", "exclude", "constraint", "network", "gres")
LISTS = ("container_mounts", "container_env", "modules", "setup", "srun_args", "sbatch_args", "het_groups")

BAD: list[tuple[str, Any]] = [
    *((name, value) for name in COUNTS for value in ("x", -3, 0, True, 1.5, "4")),
    *((name, value) for name in NAMES for value in ("", "a b", "a\nb", 3, ["a"], "--wrap=x")),
    *((name, value) for name in LISTS for value in ("text", {"a": 1}, 3, None, [3])),
    *(("gpus_per_node", value) for value in (-1, True, "8")),
    *(("retries", value) for value in (-1, True, "1", None)),
    *(
        ("time", value)
        for value in ("banana", -3, 0, "1:2:3:4", True, 1.5, "", "1:00:00\n#SBATCH --x", "30\n")
    ),
    *(("mem", value) for value in ("64X", "64GB", "-1", -1, "", "6.5G", True, "64 G", 1.5)),
    *(("mem_per_gpu", value) for value in (0, "0", "80X")),
    *(("exclusive", value) for value in ("yes", 1, "False", None)),
    *(("signal", value) for value in ("USR9", "USR2@", "USR2@70000", "X:USR2", "USR2@90\n", 10, "", "65")),
    *(("dependency", value) for value in ("1234", "afterok", "afterok:x", "afterok:1,", "before:1", "after")),
    *(("dependency", value) for value in ("afterok:1,afterok:2?afterok:3", 7, "singleton:1")),
    *(("nice", value) for value in (2147483646, -2147483646, "5", True)),
    *(("switches", value) for value in (0, "x", "1@", "1@soon", "@5", "1@5\n", True, 1.5)),
    *(("array", value) for value in (0, -1, "0-9", "1,2", "0-9%2", "x", "%0", 1.5, None, "")),
    *(("requeue", value) for value in (0, "yes", None)),
    *(("gres", value) for value in ("gpu:", "gpu:8,", ":8", "gpu:h100:x")),
    *(("comment", value) for value in ("a\nb", "", " ", 3)),
    *(("launcher", value) for value in ("mpirun", "Srun", None)),
    *(("container_runtime", value) for value in ("docker", None)),
    *(("container_image", value) for value in ("", "a b", "-x", 3, "a,b")),
    *(("query", value) for value in ("xml", None)),
    *(("transport", value) for value in ("telnet", "")),
    *(
        ("tunnel", value)
        for value in ("", "a b", "-oProxyCommand=x", "a;b", "`a`", "$a", "'a", "|a", 3, None)
    ),
    *(("job_dir", value) for value in ("", "nemorun", "~/a\nb", 3, None)),
    *(("venv", value) for value in ("", "venv", "/a\nb", 3)),
    *(("modules", [value]) for value in ("", "cuda 12", "-x", "a;b", "$(x)")),
    *(
        ("container_mounts", [value])
        for value in ("/data", "data:/data", "/data:data", "/a:/b:ro:x", "/a,:/b")
    ),
    *(("container_env", [value]) for value in ("A=1", "", "1A", "A B")),
    ("container_workdir", "work"),
    ("setup", ["a\0b"]),
    *(
        ("sbatch_args", [value])
        for value in ("-p batch", "mail-type=END", "--mail-type END", "--hold\n--x", "")
    ),
    *(
        ("env_vars", value)
        for value in ({"A=B": "x"}, {"A": 1}, {"1A": "x"}, {"a-b": "x"}, {"A": "\0"}, ["A"])
    ),
    ("env_vars", {"UID": "0"}),
    *(("het_groups", [value]) for value in ({"nodes": 0}, {"node": 1}, {"mem": "x"}, "x", {"nodes": "2"})),
]


@pytest.mark.parametrize(("field", "value"), BAD, ids=lambda value: str(value)[:30])
def test_a_bad_value_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{field}") as refused:
        SlurmExecutor(**{field: value}).validate()
    shown = value if isinstance(value, (str, int, float)) else next(iter(value or [None]))
    assert str(shown) in str(refused.value) or repr(shown) in str(refused.value)


GOOD: list[dict[str, Any]] = [
    {},
    *({"time": value} for value in (30, "30", "30:15", "1:30:00", "2-0", "2-12:30", "1-0:0:1", "UNLIMITED")),
    *({"mem": value} for value in (0, "0", 500, "500", "500K", "64g", "64G", "2T")),
    *({"exclusive": value} for value in (True, False, "user", "mcs")),
    *({"signal": value} for value in ("USR2", "USR2@90", "B:TERM@60", "R:10@5", "SIGUSR1@1", "usr1")),
    *({"dependency": value} for value in ("singleton", "afterok:1:2_3,afterany:9", "after:1+5?afterok:2")),
    *({"array": value} for value in (True, False, 4, "4", "%4")),
    *({"switches": value} for value in (1, "1", "1@30", "2@1-0")),
    *({"nice": value} for value in (0, -5, 10000)),
    *({"gres": value} for value in ("gpu", "gpu:8", "gpu:h100:8,lustre:1", "craynetwork:0", "tmp:2G")),
    *({"tunnel": value} for value in ("login", "alice@login.example.org", "login:2222", "ssh://a@b:22")),
    *({"tunnel": value} for value in ("DOMAIN\\me@login", "me@fe80::1%eth0", "ssh://me@[::1]:22", "a+b@c")),
    *({"job_dir": value} for value in ("/lustre/me", "~/x", "$SCRATCH/x", "~bob/my jobs")),
    {"nodelist": "node[001-004],gpu7", "exclude": "node009", "constraint": "(a&b)|c*2"},
    {"gpus_per_task": 2, "ntasks_per_node": 4, "gpus_per_node": 8},
    {
        "container_image": "/x.sqsh",
        "container_mounts": ["$SCRATCH/d:/d", "/a:/b:ro"],
        "container_workdir": "/w",
    },
    {
        "sbatch_args": ["--mail-type=END", "--hold", "--mem-per-cpu=2G"],
        "srun_args": ["--mpi=pmix", "--label"],
    },
    {"het_groups": [{}, HetGroup(nodes=2, partition="cpu", mem="8G", gres="x:1")]},
    {
        "account": "project_name",
        "partition": "gpu,batch",
        "nodes": 8,
        "ntasks_per_node": 8,
        "time": "24:00:00",
    },
]


@pytest.mark.parametrize("fields", GOOD, ids=str)
def test_good_values_pass(fields: dict[str, Any]) -> None:
    SlurmExecutor(**fields).validate()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"gpus_per_task": 1, "ntasks_per_node": 4, "gpus_per_node": 8}, "gpus_per_node: 8 are not the 4"),
        ({"mem": "1G", "mem_per_gpu": "1G"}, "mem_per_gpu: '1G' cannot be set together with mem"),
        ({"gres": "gpu:8", "gpus_per_node": 8}, "gres: 'gpu:8' names GPUs, and so does gpus_per_node"),
        ({"gres": "gpu:8", "gpus_per_task": 1}, "and so does gpus_per_task"),
        ({"retries": 1, "requeue": False}, "retries: 1 need requeue=True"),
        ({"container_mounts": ["/a:/a"]}, "container_mounts: .* set container_image"),
        ({"het_groups": [{}], "launcher": "torchrun"}, "launcher: torchrun starts equal nodes only"),
        ({"het_groups": [{}], "array": 4}, "array: 4 cannot be"),
        ({"launcher": "tochrun"}, "did you mean 'torchrun'"),
        ({"het_groups": [{"node": 1}]}, "did you mean 'nodes'"),
        ({"array": "0-9"}, "add a task for each"),
        ({"array": "%0"}, "how many may run at once"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SlurmExecutor(**fields).validate()


@pytest.mark.parametrize(
    ("field", "option", "said"),
    [
        ("sbatch_args", "--partition=x", "set partition instead"),
        ("sbatch_args", "--part=x", "set partition instead"),  # Slurm reads it so
        ("sbatch_args", "--ntasks=4", "set ntasks_per_node instead"),
        ("sbatch_args", "--no-requeue", "set requeue instead"),
        ("sbatch_args", "--output=x", "nemorun's to set"),
        ("sbatch_args", "--out=x", "nemorun's to set"),
        ("sbatch_args", "--wait", "nemorun's to set"),
        ("sbatch_args", "--wrap=rm", "nemorun's to set"),
        ("sbatch_args", "--export=NONE", "nemorun's to set"),
        ("srun_args", "--container-image=x", "set container_image instead"),
        ("srun_args", "--kill-on-bad-exit=0", "nemorun's to set"),
    ],
)
def test_the_escape_hatch_leaves_nemorun_what_is_its_own(field: str, option: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: '{re.escape(option)}' .*{said}"):
        SlurmExecutor(**{field: [option]}).validate()


def spec(resources: Resources | None = None, **fields: Any) -> JobSpec:
    return JobSpec("train", "abc.train", "/x/n-abc/tasks/train", resources or Resources(), **fields)


@pytest.mark.parametrize(
    ("fields", "job", "said"),
    [
        ({}, spec(env={"a-b": "x"}), "env of task 'train': 'a-b'"),
        ({}, spec(secrets=("A=B",)), "secrets of task 'train': 'A=B'"),
        ({}, spec(command=("a", "b\0")), "NUL"),
        ({"requeue": False}, spec(retries=1), "requeue=True"),
        ({"mem_per_gpu": "80G"}, spec(), "has no GPUs"),
        ({"segment": 4}, spec(Resources(nodes=6)), "segment: 4 does not divide the 6 nodes"),
        ({"dependency": "afterok:1?afterok:2"}, spec(dependencies=("a",)), "cannot be joined"),
    ],
)
def test_a_job_that_cannot_be_is_refused(fields: dict[str, Any], job: JobSpec, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SlurmExecutor(**fields).check_job(job)


def test_resources_come_from_the_executor_or_the_task() -> None:
    assert SlurmExecutor().resources(None) == Resources(1, 1, 0)
    assert SlurmExecutor(nodes=2).resources(Resources(2, 4, 4)) == Resources(2, 4, 4)
    assert SlurmExecutor(gpus_per_task=2).resources(Resources(1, 4, 8)) == Resources(1, 4, 8)
    assert SlurmExecutor(gpus_per_task=1, ntasks_per_node=8).resources(None) == Resources(1, 8, 8)
    assert SlurmExecutor(gres="gpu:h100:4,lustre:1").resources(None) == Resources(1, 1, 4)
    assert SlurmExecutor(gres="lustre:1").resources(None) == Resources(1, 1, 0)
    with pytest.raises(ConfigError, match="nodes: the executor has 3, but the task asks for 2"):
        SlurmExecutor(nodes=3).resources(Resources(2, 4))
    with pytest.raises(ConfigError, match=r"gpus_per_node: the executor has 4 \(gpus_per_task=1\)"):
        SlurmExecutor(gpus_per_task=1).resources(Resources(1, 4, 8))


def test_every_field_is_documented_and_can_be_written_down() -> None:
    docs = field_docs(SlurmExecutor)
    fields = {field.name for field in dataclasses.fields(SlurmExecutor)}
    assert {name for name in fields if not docs.get(name)} == set()
    made = SlurmExecutor(tunnel="login", exclusive=True, array="%4", het_groups=[HetGroup(nodes=2, mem=100)])
    assert loads(run.config.dumps(as_config(made))).build() == made


def test_the_settings_name_one_and_one_is_built_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nemorun.yaml").write_text(
        "executors:\n  big: {type: slurm, tunnel: login, nodes: 4, het_groups: [{nodes: 1, mem: 8G}]}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert executor("big") == SlurmExecutor(tunnel="login", nodes=4, het_groups=[{"nodes": 1, "mem": "8G"}])
    assert executor("slurm") == SlurmExecutor()


def test_a_configuration_is_checked_in_types() -> None:
    for fields in ({"nodes": "x"}, {"het_groups": [{"node": 1}]}, {"exclusive": "yes"}, {"modules": "cuda"}):
        with pytest.raises(ConfigError, match=next(iter(fields))):
            validate(Config(SlurmExecutor, **fields))
