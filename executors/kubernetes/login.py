"""Where the API server is and how to log in: from a kubeconfig, or in a cluster from the service account."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nemorun.errors import ConfigError

#: In a pod: the namespace that it is in.
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def load_configuration(files: str, context: str | None, named: bool) -> Any:
    """From the kubeconfig, or inside of a cluster from the service account."""
    try:
        from kubernetes.client import Configuration
        from kubernetes.config import ConfigException, load_incluster_config, load_kube_config
    except ImportError as error:
        raise ConfigError(
            f"the package 'kubernetes' cannot be used ({error}); pip install kubernetes"
        ) from None

    configuration = Configuration()
    there = _there(files)
    try:
        if there or named or "KUBERNETES_SERVICE_HOST" not in os.environ:
            if not there:
                raise ConfigError(
                    f"kubeconfig: there is no file {files}; set the executor's 'kubeconfig' or $KUBECONFIG"
                )
            load_kube_config(files, context, configuration, persist_config=False)  # type: ignore[no-untyped-call]
        else:
            load_incluster_config(configuration)  # type: ignore[no-untyped-call]
    except (ConfigException, OSError, ValueError) as error:
        raise ConfigError(f"kubeconfig: {files} cannot be used: {error}") from None
    return configuration


def usual_namespace(files: str, context: str | None) -> str:
    """The context's namespace, or in a cluster the pod's own."""
    if _there(files):
        from kubernetes.config import ConfigException, list_kube_config_contexts

        try:
            contexts, current = list_kube_config_contexts(files)  # type: ignore[no-untyped-call]
        except (ConfigException, OSError, ValueError) as error:
            raise ConfigError(f"kubeconfig: {files} cannot be used: {error}") from None
        chosen = current if context is None else next(one for one in contexts if one["name"] == context)
        return str(chosen["context"].get("namespace") or "default")
    if _OWN_NAMESPACE.is_file():
        return _OWN_NAMESPACE.read_text(encoding="utf-8").strip()
    return "default"


def _there(files: str) -> bool:
    return any(Path(one).is_file() for one in files.split(os.pathsep))
