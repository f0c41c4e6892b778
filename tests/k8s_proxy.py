"""A proxy in front of a Kubernetes API server that answers wrongly, or not at all, when it is told to."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import urllib3

#: What can go wrong with a request, before or after the server has obeyed it.
FAULTS = (
    *("429", "500 before", "500 after", "503 before", "409 before"),
    *("cut before", "cut after", "cut in the answer"),
)
Choose = Callable[[str, str], str | None]


class FaultyProxy:
    """Plain HTTP here, forwarded as the administrator; `choose(method, path)` says what goes wrong."""

    def __init__(self, rig_folder: Path, server: str, choose: Choose) -> None:
        self.choose = choose
        self.faults: Counter[str] = Counter()
        #: Path of an object -> how often the server has created it.
        self.created: Counter[str] = Counter()
        pki = rig_folder / "pki"
        self._upstream = urllib3.PoolManager(
            ca_certs=str(pki / "ca.crt"), cert_file=str(pki / "admin.crt"), key_file=str(pki / "admin.key")
        )
        self._server = server
        handler = type("Handler", (_Handler,), {"proxy": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True

    def kubeconfig(self, folder: Path) -> str:
        path = folder / "faulty.kubeconfig"
        url = f"http://127.0.0.1:{self.http.server_port}"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "faulty",
            "clusters": [{"name": "faulty", "cluster": {"server": url}}],
            "users": [{"name": "faulty", "user": {}}],
            "contexts": [{"name": "faulty", "context": {"cluster": "faulty", "user": "faulty"}}],
        }
        path.write_text(json.dumps(config))
        return str(path)

    def forward(self, method: str, path: str, body: bytes, content: str) -> urllib3.BaseHTTPResponse:
        answer = self._upstream.request(
            method,
            self._server + path,
            body=body,
            headers={"Content-Type": content},
            retries=False,
            preload_content=not _is_stream(path),
        )
        # what is created outside of a namespace are questions
        if method == "POST" and answer.status == 201 and "/namespaces/" in path and "dryRun" not in path:
            self.created[f"{path}/{json.loads(body)['metadata']['name']}"] += 1
        return answer


@contextmanager
def faulty_proxy(facts: dict[str, Any], choose: Choose) -> Iterator[FaultyProxy]:
    """In front of the rig; `facts` are what `k8s-rig env --json` says."""
    proxy = FaultyProxy(Path(facts["logs"]), facts["server"], choose)
    thread = threading.Thread(target=proxy.http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.http.shutdown()
        proxy.http.server_close()
        thread.join()


def _is_stream(path: str) -> bool:
    return "watch=" in path or "follow=" in path


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultyProxy

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:  # the launcher is gone
            self.close_connection = True

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.proxy.choose(self.command, self.path) or ""
        if fault:
            self.proxy.faults[fault] += 1
        kind, _, when = fault.partition(" ")
        if kind.isdigit() and when != "after":
            self._answer(int(kind), b'{"kind": "Status", "reason": "Injected", "message": "injected"}')
        elif fault == "cut before":
            self._cut()
        else:
            try:
                got = self.proxy.forward(
                    self.command, self.path, body, self.headers.get("Content-Type", "application/json")
                )
            except urllib3.exceptions.HTTPError:  # the server is down
                self.proxy.faults["no server"] += 1
                self._cut()
                return
            if fault == "cut after":
                self._cut()
            elif _is_stream(self.path) and not fault:
                self._stream(got)
            elif fault == "cut in the answer":
                self._answer(got.status, got.data[: len(got.data) // 2], len(got.data))
                self._cut()
            elif kind.isdigit():
                self._answer(int(kind), b"injected")
            else:
                self._answer(got.status, got.data)

    do_GET = do_POST = do_DELETE = do_PATCH = do_PUT = _any

    def _answer(self, status: int, body: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body) if length is None else length))
        if status == 429:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, got: urllib3.BaseHTTPResponse) -> None:
        """Hand a watch on as it comes; its end is the connection's."""
        self.send_response(got.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            while piece := got.read1():
                self.wfile.write(piece)
                self.wfile.flush()
        except urllib3.exceptions.HTTPError:  # the server went down
            pass
        finally:
            got.close()

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(2)

    def log_message(self, *_: Any) -> None:
        pass
