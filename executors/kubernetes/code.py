"""What goes to the cluster besides the manifests: nemorun itself, the tasks' files and the frozen code."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from nemorun.errors import ConfigError, SubmitError
from nemorun.executors.kubernetes.names import code_name
from nemorun.executors.slurm.library import library

if TYPE_CHECKING:
    from nemorun.executors.kubernetes.executor import KubernetesExecutor
    from nemorun.executors.kubernetes.manifests import KubernetesRendered
    from nemorun.job import JobSpec

Object = dict[str, Any]

#: Bytes that a ConfigMap may hold, as the API server counts them: its keys and values.
LIMIT = 1 << 20
#: ConfigMaps that code may be cut into on its way to a volume.
PARTS = 32
#: Keys, and names of files in the pods.
LIBRARY, CODE = "nemorun.tar.gz", "code.tar.gz"
_PART = LIMIT - 1024


def check_size(executor: KubernetesExecutor, job: JobSpec) -> None:
    """Can the job's frozen code be sent? Raises ConfigError that says what to do."""
    if job.code is None or not (archive := Path(job.code)).is_file():
        return
    most = {"configmap": _PART, "pvc": PARTS * _PART}.get(executor.code)
    if most is not None and (size := archive.stat().st_size) > most:
        other = "pvc (with 'run_dir' on a volume) or to " if executor.code == "configmap" else ""
        raise ConfigError(
            f"code: the frozen code of task '{job.name}' has {size / 1e6:.1f} MB when packed, and with "
            f"'{executor.code}' it may have {most / 1e6:.1f} MB; name what is not code in .nemorunignore, or "
            f"set the executor's 'code' to {other}image (an image that has the code)"
        )


def whole_parent(rendered: KubernetesRendered) -> Object:
    """The parent with nemorun itself and the tasks' files in it."""
    from nemorun.executors.kubernetes.manifests import task_files

    parent = rendered.parent
    if "data" not in parent:  # bare commands of an image need none of it
        return parent
    archive = library()
    texts = {**parent["data"], **task_files(rendered.jobs)}
    size = archive.stat().st_size + sum(len(key) + len(text.encode()) for key, text in texts.items())
    if size > LIMIT - 1024:
        raise SubmitError(
            f"the files of the experiment's {len(rendered.jobs)} tasks and nemorun itself have "
            f"{size / 1e6:.2f} MB, more than a ConfigMap holds ({LIMIT / 1e6:.2f} MB); submit fewer tasks at "
            "once; nothing was submitted"
        )
    return {**parent, "data": texts, "binaryData": {LIBRARY: _encoded(_read(archive))}}


def code_objects(rendered: KubernetesRendered) -> Iterator[Object]:
    """What brings the frozen code to the pods: a ConfigMap each, or a pod that writes it to the volume."""
    pairs = zip(rendered.executors, rendered.jobs, strict=True)
    ways = {(job.code, executor.code): (executor, job) for executor, job in pairs if job.code}
    for (code, _), (executor, job) in ways.items():
        if executor.code == "configmap":
            yield _config_map(rendered, code_name(job), {CODE: _read(Path(str(code)))})
        elif executor.code == "pvc":
            yield from _through_a_pod(executor, rendered, job, Path(str(code)))


def _config_map(rendered: KubernetesRendered, name: str, files: Mapping[str, bytes]) -> Object:
    metadata = {**rendered.parent["metadata"], "name": name}
    content = {key: _encoded(value) for key, value in files.items()}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "binaryData": content}


def _through_a_pod(
    executor: KubernetesExecutor, rendered: KubernetesRendered, job: JobSpec, code: Path
) -> Iterator[Object]:
    """ConfigMaps with parts of the archive, and a pod that joins them; the tasks' pods wait for it."""
    from nemorun.executors.kubernetes.environment import archive
    from nemorun.executors.kubernetes.pods import bare_pod

    name, content = code_name(job), _read(code)
    parts = [content[start : start + _PART] for start in range(0, len(content), _PART)]
    names = [f"{name}-{number}" for number in range(len(parts))]
    for number, part in enumerate(parts):
        yield _config_map(rendered, names[number], {f"part-{number:03d}": part})
    target = PurePath(archive(executor, job) or "")
    script = (
        'umask 077; mkdir -p "$1" && cd "$1" || exit 1; [ -e "$2" ] && exit; '
        'cat /nemorun-parts/part-* > "$2.$HOSTNAME.new" && mv "$2.$HOSTNAME.new" "$2"'
    )
    pod = bare_pod(executor, job, ["sh", "-c", script, "sh", str(target.parent), target.name], name)
    pod["metadata"] |= {"labels": rendered.parent["metadata"]["labels"]}  # it is none of the task's pods
    pod["spec"]["restartPolicy"] = "OnFailure"
    container = pod["spec"]["containers"][0]
    for field in ("resources", "env", "envFrom"):
        container.pop(field, None)
    sources = [{"configMap": {"name": one}} for one in names]
    pod["spec"].setdefault("volumes", []).append({"name": "parts", "projected": {"sources": sources}})
    container.setdefault("volumeMounts", []).append({"name": "parts", "mountPath": "/nemorun-parts"})
    yield pod


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SubmitError(f"{path} cannot be read ({error.strerror}); nothing was submitted") from None


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()
