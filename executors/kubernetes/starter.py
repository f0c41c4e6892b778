"""The Job of a submission that starts those of its tasks which wait for others. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nemorun.executors.kubernetes.environment import HOME
from nemorun.executors.kubernetes.names import experiment_id, parent_labels, parent_name
from nemorun.executors.kubernetes.pods import bare_pod, placed
from nemorun.job import JobSpec

if TYPE_CHECKING:
    from nemorun.executors.kubernetes.executor import KubernetesExecutor

_MAIN = """\
mkdir -p "$0/lib" && tar -xzof "$0/files/nemorun.tar.gz" -C "$0/lib" && exec python3 -I -c 'import sys
sys.path.insert(0, sys.argv[1] + "/lib")
from nemorun.executors.kubernetes.pod_starter import main
sys.exit(main(*sys.argv[2:]))' "$0" "$@"
"""
#: It asks a question every few seconds, and is one Python.
_RESOURCES = {
    "requests": {"cpu": "10m", "memory": "64Mi"},
    "limits": {"cpu": "500m", "memory": "256Mi"},
}


def starter_of(jobs: Sequence[tuple[KubernetesExecutor, JobSpec]]) -> dict[str, Any] | None:
    """None where no task waits, or no account is named that may start them."""
    waiting = [(executor, job) for executor, job in jobs if job.dependencies and executor.starter_account]
    if not waiting:
        return None
    executor, job = waiting[0]
    kinds = sorted({executor.kind for executor, _ in jobs})
    name = f"{parent_name(job)}-starter"
    pod = bare_pod(executor, job, ["sh", "-c", _MAIN, HOME, experiment_id(job.token), *kinds], name)
    labels = {**parent_labels(job), **executor.labels}
    spec, container = pod["spec"], pod["spec"]["containers"][0]
    spec |= {
        "serviceAccountName": executor.starter_account,
        "restartPolicy": "OnFailure",
        "terminationGracePeriodSeconds": 0,  # it has nothing to save
        "containers": [container],
    }
    for field in ("automountServiceAccountToken", "initContainers"):
        spec.pop(field, None)
    own = [one for one in container.get("env", ()) if one["name"].startswith("KUBERNETES_")]
    for field in ("env", "envFrom", "workingDir"):
        container.pop(field, None)
    container |= {"resources": _RESOURCES, **({"env": own} if own else {})}
    container["volumeMounts"] = [
        {"name": "nemorun", "mountPath": HOME},
        {"name": "nemorun-files", "mountPath": f"{HOME}/files", "readOnly": True},
    ]
    spec["volumes"] = [
        {"name": "nemorun", "emptyDir": {}},
        {"name": "nemorun-files", "configMap": {"name": parent_name(job)}},
    ]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": placed(executor, {"name": name, "labels": labels}),
        "spec": {"backoffLimit": 20, "template": {"metadata": {"labels": labels}, "spec": spec}},
    }
