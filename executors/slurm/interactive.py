"""A person's terminal on a cluster's nodes: in an allocation of its own, or beside a running task.

A session has a folder like an experiment's, with the same script in it; only what stands in place of job.sh
differs. The shell on the first node is set up as that script sets up its ranks.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from secrets import token_hex
from typing import TYPE_CHECKING

from nemorun.errors import ConfigError, SubmitError
from nemorun.executors.base import Rendered
from nemorun.executors.slurm import containers
from nemorun.executors.slurm.cluster import Cluster, cluster_of, script
from nemorun.executors.slurm.library import library
from nemorun.executors.slurm.limits import Options, components
from nemorun.executors.slurm.paths import experiment_id, remote_experiment_dir, remote_run_dir
from nemorun.executors.slurm.payload import Payload
from nemorun.executors.slurm.ranks import working_folder
from nemorun.executors.slurm.script import environment
from nemorun.executors.slurm.submission import interpreter, probe, refuse
from nemorun.executors.slurm.units import SlurmRendered, Unit
from nemorun.job import JobRef, JobSpec
from nemorun.remote import terminal

if TYPE_CHECKING:
    from nemorun.executors.slurm.executor import SlurmExecutor

#: Seconds within which a session begins that has been made ready, or its secrets are deleted.
GRACE = 60
#: Options of sbatch that are about a script's output and its restarts, which salloc does not have.
_SBATCH_ONLY = frozenset(
    {"array", "batch", "error", "export", "export-file", "ignore-pbs", "input", "kill-on-invalid-dep"}
    | {"open-mode", "output", "parsable", "requeue", "no-requeue", "signal", "test-only", "wait", "wrap"}
)
#: Where a script sends what its ranks print: in a session, the terminal is the place.
_LOGS = re.compile(r' \\\n +--output="[^"]+" \\\n +--open-mode=append|^ *export NEMORUN_RANK_LOGS=.*\n', re.M)


def shell(executor: SlurmExecutor, rendered: Rendered, secrets: Mapping[str, str]) -> int:
    """In an allocation that ends with it; inside the container, where the executor has one."""
    ending = _enter_container(executor, rendered.jobs[0])
    return _sit(executor, rendered, secrets, ending, again=None)


def debug(executor: SlurmExecutor, rendered: Rendered, secrets: Mapping[str, str], again: str) -> int:
    """In an allocation that is kept; `run` starts the task on all its ranks."""
    return _sit(executor, rendered, secrets, _RUN, again)


def release(executor: SlurmExecutor, token: str) -> list[str]:
    """Cancel the allocations of that session; their ids."""
    cluster = cluster_of(executor)
    unit = token.partition(".")[2]
    name = f"{unit}.{experiment_id(token)}"
    done = cluster.run(cluster.command("release.sh", JOB_NAME=name), retry=True)
    if done.returncode:
        raise SubmitError(f"{cluster.name}: {done.stderr.strip()}")
    return done.stdout.split()


def attach(executor: SlurmExecutor, ref: JobRef, job: JobSpec, rank: int) -> int:
    """On the rank's node, in the task's environment; in a new container of its image, where there is one."""
    terminal.require()
    cluster = cluster_of(executor)
    folder = remote_run_dir(ref.token, ref.run_dir)
    node = rank // job.resources.ntasks_per_node
    shares = {"nodes": str(job.resources.nodes), "ntasks-per-node": str(job.resources.ntasks_per_node)}
    begin = _beginning(executor, job, shares, _enter_container(executor, job))
    done = cluster.run(cluster.command("attach.sh", RUN=folder), begin.encode(), retry=True)
    if done.returncode:
        raise SubmitError(f"{cluster.name}: {done.stderr.strip()}")
    words = done.stdout.split()
    if len(words) < 4 or words[1] != "RUNNING":
        state = words[1] if len(words) > 1 else "no longer in the queue"
        raise SubmitError(f"task '{job.name}' does not run: its job is {state}")
    nodes = words[3].split(",")
    if node >= len(nodes):
        raise SubmitError(f"rank {rank} of task '{job.name}' is on none of its nodes {words[3]}")
    experiment = remote_experiment_dir(ref.token, ref.run_dir)
    return _enter(cluster, experiment, f"tasks/{job.name}/attach.rc", JOB=words[0], NODE=nodes[node])


def _sit(
    executor: SlurmExecutor,
    rendered: Rendered,
    secrets: Mapping[str, str],
    ending: str,
    again: str | None,
) -> int:
    terminal.require()  # before anything is sent
    assert isinstance(rendered, SlurmRendered)
    (unit,), (job,) = rendered.units, rendered.jobs
    if executor.het_groups:
        raise ConfigError("het_groups: an interactive session has one kind of nodes; set het_groups=[]")
    options = components(unit.script)[0]
    mark = f"{options['comment'].split()[0]} {_digest(options)}"
    here = replace(rendered, units=(replace(unit, script=_interactive(unit, job)),))
    cluster = cluster_of(executor)
    begin = _beginning(executor, job, options, ending)
    payload = Payload(here, secrets, library(), {f"{unit.name}.rc": begin})
    facts = probe(cluster, tuple(payload.archives), interpreter(executor))
    refuse(executor, rendered, facts, cluster.name)
    kept = f"tasks/{unit.name}/secrets" if job.secrets else ""
    claim = token_hex(8)
    command = cluster.command(
        "settle.sh",
        EXP=payload.folder,
        WANTED=" ".join(payload.archives),
        JOB_NAME=options["job-name"],
        MARK=mark if again else "",
        SECRETS=kept,
        CLAIM=claim,
        GRACE=GRACE,
    )
    done = cluster.run(command, payload.packed(facts.have, 1), retry=True)
    if done.returncode:
        raise SubmitError(f"{cluster.name}: {done.stderr.strip()}")
    living = [line.split() for line in done.stdout.splitlines()]
    if again and living and living[0][1:] != mark.split():
        raise SubmitError(
            f"{cluster.name}: the allocation {living[0][0]} is kept for '{unit.name}' with other resources "
            f"than you ask for now; `{again} --release` gives it back"
        )
    return _enter(
        cluster,
        payload.folder,
        f"{unit.name}.rc",
        OPTIONS=_salloc_options({**options, "comment": mark}),
        JOB_NAME=options["job-name"],
        KEEP="yes" if again else "no",
        JOB=living[0][0] if again and living else "",
        AGAIN=again or "",
        SECRETS=kept,
        CLAIM=claim,
    )


def _enter(cluster: Cluster, experiment: str, rc: str, **variables: str) -> int:
    settings = {
        "OPTIONS": "",
        "JOB_NAME": "",
        "KEEP": "no",
        "NODE": "",
        "AGAIN": "",
        "SECRETS": "",
        "CLAIM": "",
        **variables,
    }
    return cluster.connection.interact(cluster.command("enter.sh", EXP=experiment, RC=rc, **settings))


def _interactive(unit: Unit, job: JobSpec) -> str:
    """The task's script, whose ranks print to the terminal."""
    head = f"TOKEN={shlex.quote(job.token)}\n{script('session.sh')}"
    return _LOGS.sub("", unit.script).replace("source ./job.sh\n", head, 1)


def _beginning(executor: SlurmExecutor, job: JobSpec, options: Options, ending: str) -> str:
    """What the shell on the node reads first."""
    parts = [
        f"TASK={shlex.quote(job.name)} TOKEN={shlex.quote(job.token)}",
        f"NODES={options['nodes']} RANKS={options['ntasks-per-node']}",
        f"GPUS={options.get('gpus-per-node', '')}",
        script("session_rc.sh"),
        script("session.sh"),
        environment(executor, job),
        "set +eu +o pipefail",  # for lines of setup, and not for a person
        ending,
        f"cd {working_folder(executor, job)} || cd",
    ]
    return "\n".join(parts) + "\n"


_RUN = """\
run() {
    local number=1
    while ! mkdir "$RUN/run-$number" 2>/dev/null; do number=$((number + 1)); done
    local results=$RUN/run-$number/results
    (cd "$SLURM_SUBMIT_DIR" && NEMORUN_RESULTS_DIR=$results exec bash -l "$NEMORUN_TASK.sbatch")
}
history -s run
echo "nemorun: \\`run\\` starts it on all ranks, with results in $RUN/run-N:" >&2
sed -n '/^ *exec srun/,/^}/{s/^ *exec srun/srun/;/^}/!p}' "$SLURM_SUBMIT_DIR/$NEMORUN_TASK.sbatch" >&2"""


def _enter_container(executor: SlurmExecutor, job: JobSpec) -> str:
    """Lines that go on in a container of the executor's image; none where it has none."""
    if executor.container_image is None:
        return ""
    up = "/".join([".."] * (remote_experiment_dir(job.token, job.run_dir).count("/") + 1))
    folder = working_folder(executor, job)
    srun = ["srun --overlap --nodes=1 --ntasks=1 --cpu-bind=none --pty", '--nodelist="$(hostname -s)"']
    lines = [f"shared=$(cd {up} && pwd)"]
    words = ["bash", "-i"]
    if executor.container_runtime == "pyxis":
        srun += containers.srun_options(executor, job, folder, '"$shared"')
    else:
        lines += containers.apptainer_exports(executor, job)
        gpus = job.resources.gpus_per_node > 0
        words = [*containers.command(executor, folder, '"$shared"', gpus), *words]
    return "\n".join([*lines, " ".join([*srun, *words]), "exit"])


def _salloc_options(options: Options) -> str:
    """The script's options, each a word for a shell."""
    words = []
    for name, value in options.items():
        if name not in _SBATCH_ONLY:
            words.append(shlex.quote(f"--{name}={value}" if value else f"--{name}"))
    return " ".join(words)


def _digest(options: Options) -> str:
    """Tells allocations of different resources apart."""
    return hashlib.sha256(repr(sorted(options.items())).encode()).hexdigest()[:12]
