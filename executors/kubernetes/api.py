"""The Kubernetes API as plain JSON, over the official client's connection, with retries.

The client's own classes for objects differ between its versions and refuse what they do not know, so objects
are dictionaries here: what a manifest says is what is sent.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlencode

from nemorun.errors import SubmitUnclear
from nemorun.executors.kubernetes.login import load_configuration, usual_namespace
from nemorun.executors.kubernetes.refusals import (
    AlreadyExists,
    ApiError,
    Lost,
    NotFound,
    Unreachable,
    refusal,
)

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

    from nemorun.executors.kubernetes.executor import KubernetesExecutor

Object = dict[str, Any]

#: Seconds for which a call that did not get through is tried again; and where the server never answered yet.
PATIENCE, FIRST_PATIENCE = 30.0, 10.0
#: Seconds to connect, and for an answer to begin.
_TIMEOUT = (10.0, 40.0)

#: Kind -> name of its resource in paths and roles.
PLURALS = {
    "ConfigMap": "configmaps",
    "Event": "events",
    "Job": "jobs",
    "JobSet": "jobsets",
    "LocalQueue": "localqueues",
    "Namespace": "namespaces",
    "Node": "nodes",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "Pod": "pods",
    "PyTorchJob": "pytorchjobs",
    "ResourceQuota": "resourcequotas",
    "Secret": "secrets",
    "Service": "services",
    "TrainJob": "trainjobs",
    "Workload": "workloads",
}
#: Of Kueue's kinds; a cluster has one of them at least.
KUEUE_VERSIONS = ("kueue.x-k8s.io/v1beta1", "kueue.x-k8s.io/v1beta2")

_apis: dict[Hashable, Api] = {}
_making = threading.Lock()


def path_of(api_version: str, kind: str, namespace: str | None, name: str = "") -> str:
    """The path of an object, or of all of its kind: `/apis/batch/v1/namespaces/ml/jobs/train`."""
    root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
    inside = f"/namespaces/{namespace}" if namespace else ""
    return f"{root}{inside}/{PLURALS[kind]}" + (f"/{name}" if name else "")


def api_of(executor: KubernetesExecutor) -> Api:
    """The API server of the executor's place: one object and one set of connections for each in a process."""
    files = executor.kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
    files = os.pathsep.join(str(Path(one).expanduser()) for one in files.split(os.pathsep) if one)
    with _making:
        place = (files, executor.context, executor.namespace)
        if place not in _apis:
            _apis[place] = Api(files, executor.context, executor.namespace, named=bool(executor.kubeconfig))
        return _apis[place]


class Api:
    """Calls to one API server, for one namespace. Connects when it is first used."""

    def __init__(self, files: str, context: str | None, namespace: str | None, named: bool = True) -> None:
        self.calls = 0
        """Requests sent so far, the repeated ones too."""
        self._files, self._context, self._named = files, context, named
        self._namespace = namespace
        self._configuration: Any = None
        self._pool: Any = None
        self._connecting = threading.Lock()
        self._answered = False

    @property
    def configuration(self) -> Any:
        """The official client's `Configuration`: server, certificates, proxy, and how to log in."""
        with self._connecting:
            if self._configuration is None:
                self._configuration = load_configuration(self._files, self._context, self._named)
            return self._configuration

    @property
    def namespace(self) -> str:
        """The executor's; by default the context's, or the pod's own."""
        if self._namespace is None:
            assert self.configuration  # first: it says what is wrong with the file
            self._namespace = usual_namespace(self._files, self._context)
        return self._namespace

    @property
    def server(self) -> str:
        return str(self.configuration.host)

    def headers(self) -> dict[str, str]:
        """What logs in; tokens are renewed where they have run out."""
        settings = self.configuration.auth_settings().values()
        return {one["key"]: one["value"] for one in settings if one["in"] == "header" and one["value"]}

    def path(self, kind: str, name: str = "", api_version: str = "v1") -> str:
        """A path in the executor's namespace."""
        return path_of(api_version, kind, self.namespace, name)

    def path_to(self, manifest: Object) -> str:
        """Where this object is, or is to be."""
        return self.path(manifest["kind"], manifest["metadata"]["name"], manifest["apiVersion"])

    # ---- one object, or a list of them

    def get(self, path: str, **query: str | int) -> Object:
        return self.call("GET", path, query=query)

    def find(self, path: str) -> Object | None:
        """The object, or None where there is none."""
        try:
            return self.get(path)
        except NotFound:
            return None

    def create(self, manifest: Object) -> Object:
        """Create an object exactly once: where one of this name is there already, that one is returned.

        Raises SubmitUnclear where the connection was lost in the middle and did not come back.
        """
        path = self.path_to(manifest)
        collection = path.rpartition("/")[0]
        give_up, pause = time.monotonic() + PATIENCE, 0.2
        while True:
            try:
                return self.call("POST", collection, manifest, once=True)
            except AlreadyExists as error:
                problem: ApiError = error
            except Lost as error:
                problem = error
            try:  # look before it is tried again: it may have arrived
                found = self.find(path)
            except ApiError as error:
                raise SubmitUnclear(
                    f"{manifest['kind']} '{manifest['metadata']['name']}' may have been created or not: "
                    f"{problem}; and it cannot be looked for: {error}"
                ) from None
            if found is not None:
                return found
            if time.monotonic() + pause > give_up:
                raise problem
            time.sleep(pause)
            pause = min(2 * pause, 5.0)

    def dry_run(self, manifest: Object) -> Object:
        """What the server would make of it, with all its checks and defaults; nothing is created."""
        return self.call("POST", self.path_to(manifest).rpartition("/")[0], manifest, query={"dryRun": "All"})

    def patch(self, path: str, change: Object) -> Object:
        """Merge into an object: lists are replaced, None removes."""
        return self.call("PATCH", path, change, content="application/merge-patch+json")

    def delete(self, path: str, *, uid: str | None = None, **query: str | int) -> bool:
        """Delete an object and, in the background, all that it owns. False where there was none."""
        options: Object = {"propagationPolicy": "Background"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        try:
            self.call("DELETE", path, options, query=query)
        except NotFound:
            return False
        return True

    def text(self, path: str, **query: str | int) -> str:
        """An answer that is no JSON, such as a log."""
        return cast("bytes", self._patient("GET", path, None, query, once=False)).decode(errors="replace")

    def open(self, path: str, *, silence: float | None = None, **query: str | int) -> BaseHTTPResponse:
        """An answer that comes in pieces (a watch, a followed log), to be read and closed by the caller.

        `silence`: seconds without a byte after which reading raises urllib3's ReadTimeoutError.
        """
        answer = self._patient("GET", path, None, query, once=False, stream=True, silence=silence)
        return cast("BaseHTTPResponse", answer)

    # ---- any call

    def call(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        query: Mapping[str, str | int] | None = None,
        once: bool = False,
        content: str = "application/json",
    ) -> Object:
        """Send a request, and again while it does not get through. Raises ApiError, or a subclass.

        `once`: it must not be sent again where it may have been obeyed; then `Lost` is raised.
        """
        encoded = None if body is None else json.dumps(body).encode()
        answer = self._patient(method, path, encoded, query or {}, once=once, content=content)
        return cast("Object", json.loads(answer))

    def _patient(
        self,
        method: str,
        path: str,
        body: bytes | None,
        query: Mapping[str, str | int],
        *,
        once: bool,
        **how: Any,
    ) -> Any:
        began, pause = time.monotonic(), 0.2
        while True:
            try:
                answer = self._send(method, path, body, query, **how)
                self._answered = True
                return answer
            except ApiError as error:
                self._answered = self._answered or error.status != 0
                if not error.passing or (once and isinstance(error, Lost)):
                    raise
                patience = PATIENCE if self._answered else FIRST_PATIENCE
                wait = max(error.retry_after, pause * random.uniform(0.7, 1.3))
                if time.monotonic() + wait > began + patience:
                    raise
            time.sleep(wait)
            pause = min(2 * pause, 5.0)

    def _send(
        self,
        method: str,
        path: str,
        body: bytes | None,
        query: Mapping[str, str | int],
        *,
        content: str = "application/json",
        stream: bool = False,
        silence: float | None = None,
    ) -> Any:
        """One request, one answer."""
        url = f"{self.server}{path}" + (f"?{urlencode(query)}" if query else "")  # says what is not installed
        import urllib3
        from urllib3 import exceptions

        headers = {"Accept": "application/json, */*", **self.headers()}
        if body is not None:
            headers["Content-Type"] = content
        self.calls += 1
        connect, read = _TIMEOUT
        try:
            response = self._pool_manager().request(
                method,
                url,
                body=body,
                headers=headers,
                retries=False,
                preload_content=not stream,
                timeout=urllib3.Timeout(connect=connect, read=silence if stream else read),
            )
            if response.status < 300:
                return response if stream else response.data
            said = response.data
        except (
            exceptions.NewConnectionError,
            exceptions.ConnectTimeoutError,
            exceptions.ProxyError,
        ) as error:
            raise Unreachable(f"{self.server} cannot be reached: {error}", passing=True) from error
        except exceptions.SSLError as error:
            raise Unreachable(
                f"{self.server} does not show a certificate that can be trusted: {error}; "
                "look at certificate-authority in the kubeconfig"
            ) from error
        except exceptions.HTTPError as error:
            raise Lost(f"the connection to {self.server} was lost: {error}", passing=True) from error
        raise refusal(method, path, query, response.status, said, response.headers.get("Retry-After"))

    def _pool_manager(self) -> Any:
        configuration = self.configuration
        with self._connecting:
            if self._pool is None:
                from kubernetes.client.rest import RESTClientObject

                self._pool = RESTClientObject(configuration).pool_manager
            return self._pool
