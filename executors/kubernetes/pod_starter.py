"""In a pod of a submission: starts its tasks that wait for others, as soon as those have succeeded.

    main(EXPERIMENT, KIND…) ends when no task waits any more that could ever start.

Standard library only: it runs in any image with Python 3.10.
"""

from __future__ import annotations

import json
import os
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nemorun.executors.kubernetes.api import path_of
from nemorun.executors.kubernetes.dependencies import may_start, may_start_later
from nemorun.executors.kubernetes.manifests import release_patch
from nemorun.executors.kubernetes.names import EXPERIMENT_LABEL
from nemorun.executors.kubernetes.pod_settings import say
from nemorun.executors.kubernetes.workloads import KINDS, without_waiting

Object = dict[str, Any]
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
#: Seconds between two looks.
PACE = 3.0
_TIMEOUT = 30.0


class Server:
    """The API server, as the pod's own account."""

    def __init__(self, account: Path = _ACCOUNT) -> None:
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
        self._url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        self._account = account
        self._trust = ssl.create_default_context(cafile=str(account / "ca.crt"))
        self.namespace = (account / "namespace").read_text().strip()

    def ask(self, path: str, change: Object | None = None) -> Object:
        """Get, or merge a change into what is there. Raises OSError."""
        headers = {
            "Authorization": f"Bearer {(self._account / 'token').read_text().strip()}",  # it is renewed
            "Content-Type": "application/merge-patch+json",
        }
        body = None if change is None else json.dumps(change).encode()
        method = "GET" if change is None else "PATCH"
        request = urllib.request.Request(self._url + path, body, headers, method=method)
        with urllib.request.urlopen(request, timeout=_TIMEOUT, context=self._trust) as answer:
            found: Object = json.load(answer)
            return found


def step(server: Server, experiment: str, kinds: list[str]) -> bool:
    """Start what may start; False where nothing is left to wait for. Raises OSError."""
    workloads: dict[str, Object] = {}
    for kind in kinds:
        version, name = KINDS[kind]
        path = path_of(version, name, server.namespace)
        for one in server.ask(f"{path}?labelSelector={quote(f'{EXPERIMENT_LABEL}={experiment}')}")["items"]:
            workloads[one["metadata"]["name"]] = {"apiVersion": version, "kind": name, **one}
    for name, workload in workloads.items():
        if may_start(workloads, workload):
            patch = without_waiting(release_patch(workload))
            # not if somebody has suspended it meanwhile
            patch["metadata"]["resourceVersion"] = workload["metadata"]["resourceVersion"]
            server.ask(path_of(workload["apiVersion"], workload["kind"], server.namespace, name), patch)
            say(f"{name} starts: what it waited for has succeeded")
    return any(may_start_later(workloads, workload) for workload in workloads.values())


def main(experiment: str, *kinds: str) -> int:
    server = Server()
    while True:
        try:
            if not step(server, experiment, list(kinds)):
                return 0
        except urllib.error.HTTPError as error:
            said = error.read(2000).decode(errors="replace")
            if error.code in (401, 403):
                say(f"may not look after waiting tasks: {said}")
                return 1
            say(f"the API server answered {error.code}: {said}")
        except OSError as error:
            say(f"the API server cannot be asked: {error}")
        time.sleep(PACE)
