"""Where the API server is and how to log in: from a kubeconfig, or in a cluster from the service account."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from nemorun.errors import ConfigError, did_you_mean

#: That are kept open: those beyond it are closed after each answer, with a warning that tells users nothing.
CONNECTIONS = 1024
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
    from yaml import YAMLError

    configuration = Configuration()
    # streams of many pods are open at once, and all of them are to be kept for the next question
    configuration.connection_pool_maxsize = CONNECTIONS
    there = _there(files)
    try:
        if there or named or "KUBERNETES_SERVICE_HOST" not in os.environ:
            if not there:
                raise ConfigError(
                    f"kubeconfig: there is no file {files}; set the executor's 'kubeconfig' or $KUBECONFIG"
                )
            _check_context(files, context)
            with _complaints() as said:
                load_kube_config(files, context, configuration, persist_config=False)
            if said and not configuration.api_key and not configuration.cert_file:
                raise ConfigError(
                    f"kubeconfig: {files} has no way to log in: {'; '.join(said)}; run the program "
                    "that its user names by hand, or log in to the cluster again"
                )
        else:
            load_incluster_config(configuration)
    except (ConfigException, YAMLError, OSError, ValueError) as error:
        raise ConfigError(f"kubeconfig: {files} cannot be used: {' '.join(str(error).split())}") from None
    except (TypeError, AttributeError, LookupError):  # what the client says of a file of another shape
        raise ConfigError(f"kubeconfig: {files} cannot be used: it is no kubeconfig") from None
    _log_in_at_proxy(configuration)
    return configuration


def _log_in_at_proxy(configuration: Any) -> None:
    """The client takes a proxy's name and password from headers only, and not from its address."""
    from urllib3.util import make_headers, parse_url

    if not configuration.proxy or configuration.proxy_headers:
        return
    if who := parse_url(configuration.proxy).auth:
        configuration.proxy_headers = make_headers(proxy_basic_auth=unquote(who))


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """What the client logs, to no one, of a program that did not say who the user is."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage().strip())

    listener = Listener(logging.ERROR)
    logging.getLogger().addHandler(listener)
    try:
        yield said
    finally:
        logging.getLogger().removeHandler(listener)


def _check_context(files: str, context: str | None) -> None:
    from kubernetes.config import list_kube_config_contexts

    if context is None:
        return
    contexts, _ = list_kube_config_contexts(files)
    names = [one["name"] for one in contexts]
    if context not in names:
        raise ConfigError(
            f"context: {files} has no {context!r}; it has {', '.join(names)}{did_you_mean(context, names)}"
        )


def usual_namespace(files: str, context: str | None) -> str:
    """The namespace of the context, which is known to be there, or in a cluster the pod's own."""
    if _there(files):
        from kubernetes.config import list_kube_config_contexts

        contexts, current = list_kube_config_contexts(files)
        chosen = current if context is None else next(one for one in contexts if one["name"] == context)
        return str(chosen["context"].get("namespace") or "default")
    if _OWN_NAMESPACE.is_file():
        return _OWN_NAMESPACE.read_text(encoding="utf-8").strip()
    return "default"


def _there(files: str) -> bool:
    return any(Path(one).is_file() for one in files.split(os.pathsep))
