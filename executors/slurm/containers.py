"""How ranks get into a container: options of srun for pyxis, a command in front of the rank for apptainer."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from nemorun.remote.paths import quote_path

if TYPE_CHECKING:
    from nemorun.executors.slurm.executor import SlurmExecutor
    from nemorun.job import JobSpec

_PATH = re.compile(r"[/~$.]")
#: A registry is known by its dot or port; `nvidia/cuda` is a folder of Docker Hub.
_REGISTRY = re.compile(r"((?:[^/@]+@)?[^/]*[.:][^/]*)/(.+)")


def variables(executor: SlurmExecutor, job: JobSpec) -> list[str]:
    """Names of variables that win over the image's own, as they do without a container."""
    ours = {"PYTHONPATH", *(["VIRTUAL_ENV"] if executor.venv else [])}
    return sorted({*job.env, *job.secrets, *ours, *executor.container_env})


def srun_options(executor: SlurmExecutor, job: JobSpec, workdir: str, shared: str) -> list[str]:
    """Options of srun for pyxis. `workdir` and `shared`, a folder that ranks must see, are shell words."""
    mounts = ",".join([f"{shared}:{shared}", *map(_mount, executor.container_mounts)])
    return [
        f"--container-image={_pyxis_image(executor.container_image or '')}",
        f"--container-mounts={mounts}",
        f"--container-workdir={workdir}",
        f"--container-env={','.join(variables(executor, job))}",
    ]


def command(executor: SlurmExecutor, workdir: str, shared: str, gpus: bool) -> list[str]:
    """The words in front of a rank's for apptainer."""
    return [
        "apptainer exec",
        *(["--nv"] if gpus else []),
        *(f"--bind={mount}" for mount in (shared, *map(_mount, executor.container_mounts))),
        f"--pwd={workdir}",
        _apptainer_image(executor.container_image or ""),
    ]


def apptainer_exports(executor: SlurmExecutor, job: JobSpec) -> list[str]:
    """apptainer lets an image's variables win, but for those that are handed over under such a name."""
    return [f'export APPTAINERENV_{name}="${{{name}-}}"' for name in variables(executor, job)]


def _mount(mount: str) -> str:
    source, _, rest = mount.partition(":")
    return f"{quote_path(source)}:{shlex.quote(rest)}"


def _pyxis_image(image: str) -> str:
    """enroot separates a registry by `#`."""
    if _PATH.match(image):
        return quote_path(image)
    if "#" not in image and "://" not in image and (match := _REGISTRY.fullmatch(image)):
        image = f"{match[1]}#{match[2]}"
    return shlex.quote(image)


def _apptainer_image(image: str) -> str:
    if _PATH.match(image):
        return quote_path(image)
    return shlex.quote(image if "://" in image else f"docker://{image.replace('#', '/')}")
