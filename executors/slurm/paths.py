"""Where things of an experiment lie on the cluster, under the executor's `job_dir`."""

from __future__ import annotations

import re
from pathlib import Path, PurePath

#: Under `job_dir`: experiments, frozen code and nemorun itself, the latter two by content.
EXPERIMENTS, CODE, LIBRARY = "experiments", "code", "lib"
#: File of the record here, beside `tasks`: what `job_dir` is on the cluster, without ~ and variables.
JOB_DIR = "job_dir"


def experiment_id(token: str) -> str:
    """The experiment's id; a token is `{id}.{task}`."""
    return token.partition(".")[0]


def remote_experiment_dir(token: str, run_dir: str) -> str:
    """The folder under `job_dir` that jobs are submitted in: `experiments/<name>-<id>[/group-N]`."""
    return remote_run_dir(token, run_dir).rpartition("/tasks/")[0]


def remote_run_dir(token: str, run_dir: str) -> str:
    """A task's own folder under `job_dir`; below the experiment's folder, it is placed as it is here."""
    suffix = f"-{experiment_id(token)}"
    parts = PurePath(run_dir).parts
    start = max(number for number, part in enumerate(parts) if part.endswith(suffix))
    return "/".join([EXPERIMENTS, *parts[start:]])


def known_job_dir(run_dir: str) -> str | None:
    """`job_dir` as the cluster knows it, if a submission has got as far as to learn it."""
    try:
        return (Path(run_dir).parents[1] / JOB_DIR).read_text(encoding="utf-8")
    except OSError:
        return None


def remote_results_dir(results: PurePath) -> str:
    """The folder under `job_dir` for `results`, the results folder here of an earlier experiment's task."""
    depth = 5 if re.fullmatch(r"group-\d+", results.parts[-4]) else 4
    return "/".join([EXPERIMENTS, *results.parts[-depth:]])
