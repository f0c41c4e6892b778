"""The escape hatch: further options of sbatch and srun, as far as they take nothing away from nemorun."""

from __future__ import annotations

import re
from typing import Any

from nemorun.errors import ConfigError

_OPTION = re.compile(r"--([a-z][a-z0-9-]*)(?:=([^\0\n\r]*))?")
_SAME = """
    account partition qos nodes ntasks-per-node gpus-per-node gpus-per-task cpus-per-task mem mem-per-gpu time
    exclusive constraint exclude nodelist reservation gres comment signal requeue array dependency switches
    segment network nice container-image container-mounts container-workdir container-env
"""
#: Option -> the field to set in its place.
_FIELDS = {option: option.replace("-", "_") for option in _SAME.split()}
_FIELDS |= {"no-requeue": "requeue", "ntasks": "ntasks_per_node", "gpus": "gpus_per_node"}
_FIELDS |= {"het-group": "het_groups"}
#: What nemorun sets itself, or what would break how it submits, follows and finds a job again.
_OURS = {
    "sbatch_args": """
        job-name output error input open-mode chdir export export-file get-user-env uid gid help usage version
        parsable wrap wait test-only kill-on-invalid-dep clusters quiet
    """,
    "srun_args": """
        job-name output error input open-mode chdir export export-file uid gid help usage version
        kill-on-bad-exit jobid multi-prog pty batch async bcast
    """,
}


def check_options(field: str, options: Any) -> None:
    """Raises ConfigError for an option that a field stands for, that nemorun sets, or that is none."""
    if not isinstance(options, list | tuple):
        raise ConfigError(f"{field}: {options!r} is not a list, such as ['--mail-type=END']")
    for option in options:
        match = _OPTION.fullmatch(option) if isinstance(option, str) else None
        if match is None:
            raise ConfigError(
                f"{field}: {option!r} is not an option; write each as one text on one line, --name or"
                " --name=value"
            )
        # Slurm takes the beginning of an option for the whole: --part=x is --partition=x.
        if meant := next((one for one in _FIELDS if one.startswith(match[1])), None):
            raise ConfigError(f"{field}: {option!r} has a field of its own; set {_FIELDS[meant]} instead")
        if any(one.startswith(match[1]) for one in _OURS[field].split()):
            raise ConfigError(
                f"{field}: {option!r} is nemorun's to set, or would keep it from following the job"
            )
