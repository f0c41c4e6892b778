"""Submits to a cluster: one command asks what is there, one sends everything, whatever breaks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nemorun.errors import SubmitError, SubmitUnclear
from nemorun.executors.base import Rendered
from nemorun.executors.slurm.cluster import PATIENCE, Cluster, cluster_of
from nemorun.executors.slurm.facts import Facts, parse
from nemorun.executors.slurm.library import library
from nemorun.executors.slurm.limits import components, directives, problems
from nemorun.executors.slurm.paths import JOB_DIR
from nemorun.executors.slurm.payload import Payload
from nemorun.executors.slurm.units import SlurmRendered
from nemorun.remote.connection import Completed
from nemorun.remote.errors import ConnectionLost, RemoteError
from nemorun.remote.paths import quote_path

if TYPE_CHECKING:
    from nemorun.executors.slurm.executor import SlurmExecutor

#: Exit codes of our scripts: Slurm did not answer; nor when it was asked what an earlier call had done.
NO_ANSWER, UNCLEAR = 98, 92


def submit(executor: SlurmExecutor, rendered: Rendered, secrets: Mapping[str, str]) -> dict[str, str]:
    """Task name -> handle. Called again with the same submission, it finds the first one.

    Raises SubmitError where nothing runs, SubmitUnclear where nobody knows.
    """
    assert isinstance(rendered, SlurmRendered)
    cluster = cluster_of(executor)
    payload = Payload(rendered, secrets, library())
    try:
        facts = probe(cluster, tuple(payload.archives), interpreter(executor))
    except RemoteError as error:
        raise SubmitError(f"nothing was submitted: {error}") from error
    refuse(executor, rendered, facts, cluster.name)
    with suppress(OSError):  # a full disk: then job_dir is shown as it was written
        note = Path(rendered.jobs[0].run_dir).parents[1] / JOB_DIR
        note.write_text(facts.job_dir, encoding="utf-8")
    return _send(cluster, payload, facts)


def probe(cluster: Cluster, wanted: tuple[str, ...] = (), python: str = "", more: bool = False) -> Facts:
    """What is there, read by one command. Raises SubmitError where it cannot be used, RemoteError."""
    command = cluster.command(
        "probe.sh", WANTED=" ".join(wanted), PYTHON=python, MORE="yes" if more else "no"
    )
    give_up = time.monotonic() + PATIENCE
    while True:
        done = cluster.run(command, retry=True)
        if done.returncode != NO_ANSWER or time.monotonic() > give_up:
            break
        time.sleep(1)  # Slurm's own commands have waited for some seconds by now
    if done.returncode:
        raise SubmitError(f"{cluster.name}: {_said(done)}; nothing was submitted")
    return parse(done.stdout)


def interpreter(executor: SlurmExecutor) -> str:
    """The Python that must be on the login node, too, as a word for its shell; empty: nobody can tell."""
    if executor.container_image or executor.modules or executor.setup:
        return ""
    if executor.venv is None:
        return "" if executor.tunnel == "local" else "python3"
    return quote_path(f"{executor.venv}/bin/python3")


def refuse(executor: SlurmExecutor, rendered: SlurmRendered, facts: Facts, name: str) -> None:
    """Raises SubmitError for what would fail, or wait for ever."""
    found = [*place_problems(executor, facts)]
    judged: dict[str, list[str]] = {}
    for unit in rendered.units:
        request = directives(unit.script)
        if request not in judged:  # most tasks of a sweep ask for the same
            judged[request] = [one for options in components(request) for one in problems(options, facts)]
        whose = f"task '{unit.tasks[0]}'" + (f" and {len(unit.tasks) - 1} more" if unit.tasks[1:] else "")
        found += [f"{whose}: {problem}" for problem in judged[request]]
    if found:
        more = f" (and {len(found) - 5} more)" if len(found) > 5 else ""
        raise SubmitError(f"{name}: {'; '.join(found[:5])}{more}; nothing was submitted")


def place_problems(executor: SlurmExecutor, facts: Facts) -> list[str]:
    """What is wrong with job_dir and Python there."""
    found = []
    if not facts.job_dir.startswith("/"):
        found.append(f"job_dir='{executor.job_dir}': it must begin with /, ~ or a variable that does")
    elif facts.blocked:
        found.append(
            f"job_dir='{executor.job_dir}': you may not write to {facts.blocked}; "
            "set it to a folder of yours that all nodes see, such as $SCRATCH/nemorun"
        )
    elif facts.free is not None and facts.free < 10_000_000:
        found.append(f"job_dir='{executor.job_dir}': its file system is full ({facts.free // 1000} kB left)")
    if facts.python is not None:
        found += _python_problems(executor, facts.python)
    return found


def _python_problems(executor: SlurmExecutor, said: str) -> list[str]:
    asked = f"venv='{executor.venv}'" if executor.venv else "python3 on PATH"
    advice = "set venv (a virtual environment there with Python 3.10 or newer), modules or container_image"
    version = said.removeprefix("Python ").split(".")
    if len(version) < 2 or not all(part.isdigit() for part in version[:2]):
        return [f"{asked}: there is no such Python on the cluster; {advice}"]
    if (int(version[0]), int(version[1])) < (3, 10):
        return [f"{asked}: it is {said}, which is too old; {advice}"]
    return []


def _send(cluster: Cluster, payload: Payload, facts: Facts) -> dict[str, str]:
    command = cluster.plain_command(
        "submit.sh", ID=payload.id, EXP=payload.folder, WANTED=" ".join(payload.archives)
    )
    have = facts.have
    while True:
        try:
            done = cluster.run(command, payload.packed(have, facts.max_array_size), retry=True)
        except (ConnectionLost, SubmitError) as error:
            raise SubmitUnclear(
                f"{error} The next look at experiment {payload.id} finds what became of it"
            ) from error
        if done.returncode == UNCLEAR:
            raise SubmitUnclear(f"{cluster.name}: Slurm does not tell what it has taken: {_said(done)}")
        if done.returncode:
            raise SubmitError(f"{cluster.name}: {_said(done)}; nothing was submitted")
        first, *lines = done.stdout.splitlines()
        if first == "missing" and have:  # an archive was deleted after the probe had seen it
            have = frozenset()
            continue
        break
    if first != "ok":
        unit = first.partition(" ")[2]
        raise SubmitError(explain(unit, [line for line in lines if line.strip()], facts, cluster.name))
    return dict(line.split(" ", 1) for line in lines)


def explain(unit: str, said: list[str], facts: Facts, name: str) -> str:
    """What sbatch refused, in plain words; what it said itself is always part of them."""
    slurm = " ".join(line.removeprefix("sbatch: ").removeprefix("error: ").strip() for line in said)
    if not unit:
        return (
            f"{name}: Slurm's controller did not answer ({slurm}); what was submitted before is cancelled. "
            "Try again when `sinfo` works there"
        )
    advice = next((text for words, text in _ADVICE if words in slurm.lower()), "")
    if "account" in slurm.lower() and facts.associations:
        advice = f"you have account {', '.join(sorted({one.account for one in facts.associations}))}"
    return f"{name}: Slurm refused '{unit}': {slurm}{'; ' + advice if advice else ''}. Nothing was submitted"


#: A part of what sbatch says, in lower case -> what to do.
_ADVICE = (
    (
        "node configuration is not available",
        "no node has what each node of the job asks for: see `sinfo -Nel`",
    ),
    ("invalid feature", "constraint names a feature that no node has: see `sinfo -o '%n %f'`"),
    ("reservation", "see `scontrol show reservation`"),
    ("invalid node name", "nodelist or exclude names a node that is not there: see `sinfo -N`"),
    ("submitjoblimit", "you have as many jobs queued as your account or QOS allows"),
    ("job submit limit", "you have as many jobs queued as your account or QOS allows"),
    ("job array", "the array is larger than the cluster allows; set array=False"),
    ("time limit", "set time to what the partition allows: see `sinfo -o '%P %l'`"),
    ("violates accounting", "it asks for more than your account or QOS allows: see `sacctmgr show assoc`"),
)


def _said(done: Completed) -> str:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return " ".join(lines[-3:]) or f"a script of ours ended with exit code {done.returncode}"
