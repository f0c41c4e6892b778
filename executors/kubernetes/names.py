"""Names and labels: valid for the API server, unique whatever the experiment and its tasks are called."""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePath

from nemorun.job import JobRef, JobSpec

#: A workload's name: with `-worker-999` or the like behind it, it must be a host name of 63 characters.
LONGEST = 52
#: Labels that nemorun finds its objects by.
EXPERIMENT_LABEL, TASK_LABEL = "nemorun/experiment", "nemorun/task"
MANAGER = "nemorun"

_DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?")
_HASHED = re.compile(r".*-[0-9a-f]{6}")


def experiment_id(token: str) -> str:
    """The experiment's id; a token is `{id}.{task}`."""
    return token.partition(".")[0]


def task_name(token: str) -> str:
    return token.partition(".")[2]


def object_name(token: str) -> str:
    """Of the Job, the Service and the Secret of a task: `<task>-<experiment id>`."""
    experiment = experiment_id(token)
    return f"{slug(task_name(token), LONGEST - len(experiment) - 1)}-{experiment}"


def parent_name(job: JobSpec | JobRef) -> str:
    """Of the ConfigMap that owns all else of a submission: `<experiment>-<id>`, of a second group `-2`."""
    experiment = experiment_id(job.token)
    folder = experiment_folder(job)
    name = slug(folder.removesuffix(f"-{experiment}"), LONGEST - len(experiment) - 1)
    group = re.search(r"/group-(\d+)/tasks/", PurePath(job.run_dir).as_posix())
    return f"{name}-{experiment}" + (f"-{group[1]}" if group else "")


def experiment_folder(job: JobSpec | JobRef) -> str:
    """`<experiment>-<id>` as it is called on the launching machine."""
    suffix = f"-{experiment_id(job.token)}"
    return next(part for part in reversed(PurePath(job.run_dir).parts) if part.endswith(suffix))


def file_prefix(token: str) -> str:
    """Of a task's files in the parent: `<prefix>.<file name>`; it has no dot itself."""
    return slug(task_name(token), LONGEST)


def code_name(job: JobSpec) -> str:
    """Of the ConfigMap that holds the job's frozen code."""
    return f"{parent_name(job)}-code-{PurePath(job.code or '').name[:8]}"


def selector(token: str) -> str:
    """Finds all objects of a task; without `nemorun/task`, all of an experiment."""
    return f"{EXPERIMENT_LABEL}={experiment_id(token)},{TASK_LABEL}={label_value(task_name(token))}"


def labels(job: JobSpec) -> dict[str, str]:
    """Of all objects and pods of a task."""
    return {
        "app.kubernetes.io/name": label_value(job.name),
        "app.kubernetes.io/instance": object_name(job.token),
        **parent_labels(job),
        TASK_LABEL: label_value(job.name),
    }


def parent_labels(job: JobSpec) -> dict[str, str]:
    """Of what tasks of an experiment share."""
    return {
        "app.kubernetes.io/part-of": parent_name(job),
        "app.kubernetes.io/managed-by": MANAGER,
        EXPERIMENT_LABEL: experiment_id(job.token),
    }


def label_value(text: str) -> str:
    """The text itself where a label can hold it, else something like it that is as unique."""
    if _LABEL_VALUE.fullmatch(text) and len(text) <= 63 and not _HASHED.fullmatch(text):
        return text
    return slug(text, 63)


def slug(text: str, longest: int) -> str:
    """The text itself where it can be a host name, else something like it with a hash of it."""
    if _DNS_LABEL.fullmatch(text) and len(text) <= longest and not _HASHED.fullmatch(text):
        return text
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if not plain[:1].isalpha():
        plain = f"t-{plain}"
    return f"{plain[: longest - 7].rstrip('-')}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
