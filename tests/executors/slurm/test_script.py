"""What is rendered for Slurm: kept as golden files, read by bash, shellcheck and sbatch, and run for real.

After a wanted change: `WRITE_GOLDEN=1 python -m pytest tests/executors/slurm/test_script.py`, and read the
difference that git shows.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemorun.executors.slurm import SlurmExecutor
from nemorun.executors.slurm import executor as module
from nemorun.executors.slurm.script import environment, render
from nemorun.executors.slurm.units import Draft, grouped
from tests.slurm_rig import Rig

from .scripts import AWKWARD, PYTHON, SUBMISSIONS, cluster, job, rendered

GOLDEN = Path(__file__).with_name("golden")
INTERPRETER = Path(sys.executable)
JOB_SH = Path(module.__file__).with_name("job.sh")


@pytest.fixture(autouse=True)
def launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", PYTHON)


@pytest.mark.parametrize("name", SUBMISSIONS)
def test_a_submission_is_rendered_as_it_was(name: str) -> None:
    text = rendered(name).text
    if os.environ.get("WRITE_GOLDEN"):
        (GOLDEN / f"{name}.txt").write_text(text)
    assert text == (GOLDEN / f"{name}.txt").read_text()


def test_every_field_is_in_a_golden_file() -> None:
    #: These say where and how to ask, and stand in no script.
    elsewhere = {"transport", "ssh_config", "job_dir", "query", "retries"}
    bare = SlurmExecutor()
    used = {
        field.name
        for pairs in SUBMISSIONS.values()
        for executor, _ in pairs
        for field in dataclasses.fields(executor)
        if getattr(executor, field.name) != getattr(bare, field.name)
    }
    # the executor's own numbers of these reach a script by way of the task's resources
    by_resources = {"gpus_per_node"}
    assert {field.name for field in dataclasses.fields(bare)} == used | elsewhere | by_resources


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All scripts of the golden files, beside what they source."""
    folder = tmp_path_factory.mktemp("scripts")
    shutil.copy(JOB_SH, folder)
    for name in SUBMISSIONS:
        for unit in rendered(name).units:
            (folder / f"{name}-{unit.name}.sbatch").write_text(unit.script)
    return folder


def test_bash_reads_every_script(folder: Path) -> None:
    for script in sorted(folder.glob("*.sbatch")):
        done = subprocess.run(["bash", "-n", script], text=True, capture_output=True)
        assert done.returncode == 0 and not done.stderr, done.stderr


def test_shellcheck_finds_nothing(folder: Path) -> None:
    # SC2016: what is quoted for the ranks is theirs to expand; SC1091, SC2034: job.sh has a test of its own
    command = [INTERPRETER.with_name("shellcheck"), "--exclude=SC2016,SC1091,SC2034", "--format=gcc"]
    done = subprocess.run([*command, *sorted(folder.glob("*.sbatch"))], text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["gpus", "torchrun", "heterogeneous", "arrays", "environment"])
def test_slurm_takes_the_scripts(name: str, rig: Rig) -> None:
    """As far as the rig has what they ask for: only options that it does not know are left out."""
    scripts = []
    for unit in rendered(name).units:
        text = unit.script.replace("--partition=gpu", "--partition=batch")
        text = text.replace("--partition=cpu", "--partition=interactive").replace("gres=x:1", "gres=gpu:1")
        text = "\n".join(line for line in text.splitlines() if "constraint" not in line)
        scripts.append(f"sbatch --test-only <<'END_OF_SCRIPT'\n{text}\nEND_OF_SCRIPT\n")
    said = rig.on_login(f"runuser -u alice -- sh -c {shlex.quote(''.join(scripts))} 2>&1")
    assert said.count("to start at") >= len(scripts), said


def test_slurm_reads_quoted_values(rig: Rig) -> None:
    script = rendered("every-option").units[-1].script
    comment = next(line for line in script.splitlines() if "--comment" in line)
    text = f"#!/bin/sh\n{comment}\n#SBATCH --hold --output=/dev/null\ntrue\n"
    program = (
        f'id=$(printf %s {shlex.quote(text)} | sbatch --parsable); squeue -h -o %k -j "$id"; scancel "$id"'
    )
    said = rig.on_login(f"runuser -u alice -- sh -c {shlex.quote(program)} 2>&1")
    assert said == 'nemorun:k3x9q2ab.train it\'s #1 of "mine" \\ yours\n'


# --- run by a real bash, with srun and the cluster's parts acted

ACTED = """\
export NEMORUN_RUN_DIR=$PWD/run NEMORUN_ATTEMPT=1 NEMORUN_TOKEN=abc.train SLURM_SUBMIT_DIR=$PWD
launch() { "$@"; }
"""
#: Of all words it keeps those of the rank, from the program on.
SRUN = """\
#!/bin/bash
printf '%s\\0' "$@" >argv
env -0 >env
"""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage")
    (folder / "job.sh").write_text(ACTED)
    for name, text in {
        "srun": SRUN,
        "scontrol": "#!/bin/sh\necho node001\n",
        "module": "#!/bin/sh\n",
    }.items():
        (folder / "bin").mkdir(exist_ok=True)
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    return folder


def perform(stage: Path, script: str, **variables: str) -> tuple[list[str], dict[str, str]]:
    """Run a script; returns the words and the environment that srun was started with."""
    env = {"PATH": f"{stage / 'bin'}:{os.environ['PATH']}", "HOME": str(stage), **variables}
    text = script.replace("#!/bin/bash -l", "#!/bin/bash")
    done = subprocess.run(["bash", "-c", text], cwd=stage, env=env, text=True, capture_output=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    argv = (stage / "argv").read_bytes().decode().split("\0")[:-1]
    pairs = (stage / "env").read_bytes().decode().split("\0")[:-1]
    return argv, {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=60)
@given(values=st.lists(TEXT, min_size=1, max_size=4), words=st.lists(TEXT, max_size=3))
def test_values_and_words_reach_the_ranks_untouched(stage: Path, values: list[str], words: list[str]) -> None:
    env = {f"VALUE_{number}": value for number, value in enumerate(values)}
    spec = job(env=env, command=("program", *words))
    argv, seen = perform(stage, render([(cluster(), spec)]).text)
    assert {name: seen[name] for name in env} == env
    assert argv[argv.index("--command") :] == ["--command", "--", "program", *words]


@pytest.mark.parametrize("name", ["RUN", "LOGS", "TASK", "RETRIES", "ranks", "launch", "SHELL"])
def test_a_variable_of_any_name_is_the_users(stage: Path, name: str) -> None:
    argv, seen = perform(stage, render([(cluster(), job(env={name: "mine"}))]).text)
    assert seen[name] == "mine"
    assert argv[-1] == f"{stage}/run/task.yaml"


def test_ranks_start_in_a_folder_that_no_code_is_in(stage: Path) -> None:
    spec = job(cwd="/home/me/project/empty sub")
    argv, seen = perform(stage, render([(cluster(), spec)]).text)
    assert f"--chdir={seen['NEMORUN_CODE']}/empty sub" in argv
    assert Path(seen["NEMORUN_CODE"], "empty sub").is_dir()


def test_a_profile_may_change_the_folder(stage: Path) -> None:
    text = render([(cluster(), job(env={"A": "b"}))]).text
    _, seen = perform(stage, f"cd /\n{text}", SLURM_SUBMIT_DIR=str(stage))
    assert seen["A"] == "b"


def test_the_environment_alone_can_be_run(stage: Path) -> None:
    (executor, spec), *_ = SUBMISSIONS["environment"]
    lines = f"{environment(executor, spec)}\nsrun"
    _, seen = perform(stage, lines, SCRATCH="/scratch")
    assert {name: seen[name] for name in AWKWARD} == AWKWARD
    search = f"{stage}/code/4f2a91c07b3d:{stage}/code/4f2a91c07b3d/my src"
    assert seen["PYTHONPATH"] == f"{search}:{stage}/nemorun"
    assert seen["PATH"].startswith("/scratch/venvs/nemo 2/bin:")


def test_an_unset_variable_of_a_path_ends_the_script(stage: Path) -> None:
    (executor, spec), *_ = SUBMISSIONS["environment"]
    done = subprocess.run(
        ["bash", "-c", environment(executor, spec)], cwd=stage, env={}, text=True, capture_output=True
    )
    assert done.returncode != 0 and "SCRATCH: is not set" in done.stderr


def test_each_rank_knows_its_place(stage: Path) -> None:
    variables = {"SLURM_JOB_ID": "31007", "SLURM_JOB_NODELIST": "node[001-004]", "SLURM_NNODES": "4"}
    argv, seen = perform(stage, rendered("gpus").text, **variables, SLURM_NTASKS_PER_NODE="8")
    assert seen["MASTER_ADDR"] == "node001" and seen["MASTER_PORT"] == "16007"
    assert (seen["WORLD_SIZE"], seen["LOCAL_WORLD_SIZE"], seen["GROUP_WORLD_SIZE"]) == ("32", "8", "4")
    rank = argv[argv.index("bash") :]
    assert rank[:2] == ["bash", "-c"] and rank[3:5] == ["rank", "python3"]
    place = {"SLURM_PROCID": "13", "SLURM_LOCALID": "5", "SLURM_NODEID": "1"}
    shown = subprocess.check_output([*rank[:4], "env"], env={"PATH": os.environ["PATH"], **place}, text=True)
    assert {"RANK=13", "LOCAL_RANK=5", "NODE_RANK=1", "GROUP_RANK=1"} <= {*shown.splitlines()}


def test_each_rank_of_a_heterogeneous_job_knows_its_group(stage: Path) -> None:
    """Two nodes of 8 ranks, one of 3, two of 1."""
    variables = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node001"}
    argv, seen = perform(stage, rendered("heterogeneous").units[0].script, **variables)
    assert (seen["WORLD_SIZE"], seen["GROUP_WORLD_SIZE"]) == ("21", "5")
    rank = argv[argv.index("bash") :]
    found = []
    for number in (0, 15, 16, 18, 19, 20):
        env = {"PATH": os.environ["PATH"], "SLURM_PROCID": str(number)}
        shown = subprocess.check_output([*rank[:4], "env"], env=env, text=True).splitlines()
        found.append([line.partition("=")[2] for line in sorted(shown) if "HET" in line or "LOCAL_W" in line])
    assert found == [["8", "0"], ["8", "0"], ["3", "1"], ["3", "1"], ["1", "2"], ["1", "2"]]


# --- which tasks go together


def draft(name: str, *after: str, key: str = "same", array: bool = True) -> Draft:
    return Draft(name, key, after, array)


def test_equal_tasks_are_an_array() -> None:
    assert grouped([draft("a"), draft("b"), draft("c")]) == [("array-1", ("a", "b", "c"))]
    assert grouped([draft("a"), draft("b", key="other")]) == [("a", ("a",)), ("b", ("b",))]
    assert grouped([draft("a", array=False), draft("b", array=False)]) == [("a", ("a",)), ("b", ("b",))]
    # a task of that name exists
    assert grouped([draft("array-1"), draft("b")]) == [("array-2", ("array-1", "b"))]


def test_a_unit_comes_after_those_that_it_waits_for() -> None:
    units = grouped([draft("end", "b"), draft("b", "x"), draft("x", key="x"), draft("a", "x"), draft("free")])
    assert units == [("x", ("x",)), ("array-1", ("b", "a")), ("end", ("end",)), ("free", ("free",))]


def test_the_same_jobs_give_the_same_text() -> None:
    assert rendered("arrays") == rendered("arrays")
