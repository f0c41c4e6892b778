"""What goes to the cluster besides the manifests: nemorun itself and the frozen code, in ConfigMaps."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nemorun.errors import ConfigError, SubmitError
from nemorun.executors.kubernetes.names import code_name
from nemorun.executors.slurm.library import library

if TYPE_CHECKING:
    from nemorun.executors.kubernetes.api import Object
    from nemorun.executors.kubernetes.manifests import KubernetesRendered
    from nemorun.job import JobSpec

#: Bytes that a ConfigMap may hold, as the API server counts them: its keys and values.
LIMIT = 1 << 20
#: Keys, and names of files in the pods.
LIBRARY, CODE = "nemorun.tar.gz", "code.tar.gz"


def check_size(job: JobSpec) -> None:
    """Does the job's frozen code fit into a ConfigMap? Raises ConfigError that says what to do."""
    if job.code is None or not (archive := Path(job.code)).is_file():
        return
    size = archive.stat().st_size + len(CODE)
    if size > LIMIT:
        raise ConfigError(
            f"code: the frozen code of task '{job.name}' has {size / 1e6:.1f} MB when packed, and a "
            f"ConfigMap holds {LIMIT / 1e6:.2f} MB; name what is not code in .nemorunignore, or set the executor's "
            "'code' to pvc (with 'run_dir' on a volume) or to image (an image that has the code)"
        )


def with_library(parent: Object) -> Object:
    """The parent with nemorun itself in it."""
    files = {**parent.get("binaryData", {}), LIBRARY: _encoded(library())}
    whole = {**parent, "binaryData": files}
    if (size := _size(whole)) > LIMIT:
        raise SubmitError(
            f"the files of the experiment's tasks and nemorun itself have {size / 1e6:.2f} MB, more than a "
            f"ConfigMap holds ({LIMIT / 1e6:.2f} MB); submit fewer tasks at once; nothing was submitted"
        )
    return whole


def archives(rendered: KubernetesRendered) -> Iterator[Object]:
    """A ConfigMap for each archive of code that a workload mounts."""
    metadata = rendered.parent["metadata"]
    mounted = json.dumps([task.workload for task in rendered.tasks])
    found: dict[str, Path] = {}
    for job in rendered.jobs:
        if job.code and json.dumps(code_name(job)) in mounted:
            found[code_name(job)] = Path(job.code)
    for name, path in found.items():
        yield {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "labels": metadata["labels"]},
            "binaryData": {CODE: _encoded(path)},
        }


def _encoded(path: Path) -> str:
    try:
        return base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise SubmitError(f"{path} cannot be read ({error.strerror}); nothing was submitted") from None


def _size(parent: Object) -> int:
    """Of a ConfigMap, as the API server counts."""
    texts = {**parent.get("data", {})}
    binary = parent.get("binaryData", {})
    size = sum(len(key) + len(value.encode()) for key, value in texts.items())
    return size + sum(len(key) + len(base64.b64decode(value)) for key, value in binary.items())
