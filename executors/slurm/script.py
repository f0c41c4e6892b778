"""Renders jobs to the scripts that sbatch gets. Pure: the same jobs give the same text."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath

from nemorun.executors.slurm.directives import directive, sbatch_options, warning
from nemorun.executors.slurm.executor import SlurmExecutor
from nemorun.executors.slurm.paths import experiment_id
from nemorun.executors.slurm.ranks import inside, shares_files, srun, torch_variables, working_folder
from nemorun.executors.slurm.units import Draft, SlurmRendered, Unit, grouped, limit_of
from nemorun.job import JobSpec
from nemorun.remote.paths import quote_path

__all__ = ["SlurmRendered", "Unit", "environment", "render"]


def render(jobs: Sequence[tuple[SlurmExecutor, JobSpec]]) -> SlurmRendered:
    """The scripts of one submission; equal tasks become one job array."""
    by_name = {job.name: (executor, job) for executor, job in jobs}
    parts = {name: (sbatch_options(*pair), _body(*pair)) for name, pair in by_name.items()}
    drafts = [
        Draft(
            job.name,
            key=(repr(parts[job.name]), executor.comment, limit_of(executor.array)),
            after=job.dependencies,
            array=executor.array is not False and not executor.het_groups,
        )
        for executor, job in jobs
    ]
    units = []
    for name, tasks in grouped(drafts):
        executor, job = by_name[tasks[0]]
        limit = limit_of(executor.array) if len(tasks) > 1 else None
        options, body = parts[tasks[0]]
        lines = [
            "#!/bin/bash -l",
            *_head(executor, job, name, tasks, limit),
            *options,
            *([f"# after: {' '.join(job.dependencies)}"] if job.dependencies else []),
            "",
            'cd "$SLURM_SUBMIT_DIR" || exit',  # a profile may have gone elsewhere
            f"TASK='{name}'" if len(tasks) == 1 else _TASK_OF_ARRAY.format(name),
            *body,
            "",
        ]
        units.append(Unit(name, "\n".join(lines), tasks, job.dependencies, limit, executor.dependency))
    text = "\n".join(unit.script for unit in units)
    return SlurmRendered("slurm", text, tuple(job for _, job in jobs), tuple(units))


#: The script's argument counts the elements that went before, where an array had to be split.
_TASK_OF_ARRAY = 'TASK=$(sed -n "$((SLURM_ARRAY_TASK_ID + ${{1:-0}} + 1))p" {}.tasks)'


def _head(
    executor: SlurmExecutor, job: JobSpec, unit: str, tasks: tuple[str, ...], limit: int | None
) -> list[str]:
    """The lines that hold the unit's name, by which its job is found again."""
    experiment = experiment_id(job.token)
    comment = f"nemorun:{experiment}.{unit}"
    lines = [
        directive("job-name", f"{unit}.{experiment}"),
        directive("comment", f"{comment} {executor.comment}" if executor.comment else comment),
    ]
    if len(tasks) == 1:
        return [*lines, directive("output", f"tasks/{unit}/logs/slurm-%j.log")]
    indices = f"0-{len(tasks) - 1}{f'%{limit}' if limit else ''}"
    return [*lines, directive("array", indices), directive("output", "logs/%A_%a.log")]


def _body(executor: SlurmExecutor, job: JobSpec) -> list[str]:
    """All that follows the task's name."""
    return [
        f"RETRIES={job.retries}",
        *([f"RESUMABLE=1 WARNING={warning(executor)}"] if job.resumable else []),
        "source ./job.sh",
        "",
        # A function, which launch runs in a shell of its own: whatever the user's variables are called, and
        # whatever fails there, job.sh sees how it ends.
        "ranks() {",
        *_indented(_environment(executor, job)),
        *executor.setup,  # as it is: the end of a here-document must not be moved
        *_indented(torch_variables(executor, job)),
        *_indented(srun(executor, job)),
        "}",
        "launch ranks",
    ]


def _indented(statements: Iterable[str]) -> Iterator[str]:
    """Only where a statement begins: its further lines may be those of a quoted value."""
    return (f"    {statement}" for statement in statements)


def environment(executor: SlurmExecutor, job: JobSpec) -> str:
    """Lines of bash, to be run in the experiment's folder: all that ranks share but torch's variables."""
    return "\n".join([*_environment(executor, job), *executor.setup])


def _environment(executor: SlurmExecutor, job: JobSpec) -> list[str]:
    lines = []
    if executor.modules:
        lines.append(f"module load {shlex.join(executor.modules)} || exit")
    env = {name: value for name, value in job.env.items() if name != "PYTHONPATH"}
    lines += [f"export {name}={shlex.quote(value)}" for name, value in sorted(env.items())]
    if job.code:
        root = shlex.quote(job.code_root or "") if shares_files(executor) else '"$NEMORUN_CODE"'
        lines.append(f'export NEMORUN_CODE="$PWD/code/{PurePath(job.code).name[:12]}"')
        lines.append(f"export NEMORUN_CODE_ROOT={root}")
        if (folder := working_folder(executor, job)).startswith('"$NEMORUN_CODE"/'):
            lines.append(f"mkdir -p {folder}")  # one without code is not in the archive
    lines.append(f"export PYTHONPATH={_search_path(executor, job)}")
    if executor.venv:
        lines.append(f"export VIRTUAL_ENV={quote_path(executor.venv)}")
        if executor.container_image is None:
            lines.append('export PATH="$VIRTUAL_ENV/bin:$PATH"')
    return lines


def _search_path(executor: SlurmExecutor, job: JobSpec) -> str:
    """PYTHONPATH as a word: frozen code, nemorun itself for scripts that import it, what modules have set.

    Folders of the launching machine are kept only where ranks see them, too.
    """
    unpacked = (job.code or "").removesuffix(".tar.gz")
    given = job.env.get("PYTHONPATH", "")
    theirs = shares_files(executor) or given == executor.env_vars.get("PYTHONPATH")
    words = ['"$NEMORUN_CODE"'] if job.code else []
    for entry in filter(None, given.split(":")):
        rest = inside(entry, unpacked or None)
        if rest is not None:
            words.append('"$NEMORUN_CODE"' if rest == "." else f'"$NEMORUN_CODE"/{shlex.quote(rest)}')
        elif theirs:
            words.append("'" + entry.replace("'", "'\\''") + "'")
    words.append('"$PWD/nemorun${PYTHONPATH:+:$PYTHONPATH}"')
    return ":".join(dict.fromkeys(words))
