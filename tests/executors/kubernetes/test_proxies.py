"""The API server through a proxy that is real: named by the kubeconfig or by the environment."""

from __future__ import annotations

import base64
import json
import select
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from nemorun.executors.kubernetes import api
from nemorun.executors.kubernetes.refusals import ApiError
from nemorun.executors.kubernetes.terminal import _connect
from nemorun.job import JobState
from tests.executors.kubernetes.conftest import K8sBench, eventually
from tests.k8s_rig import K8sRig

Make = Callable[..., K8sBench]
#: A name that only the proxy knows the address of, as with a cluster behind one.
HIDDEN = "api.hidden.example"


class Proxy(socketserver.ThreadingTCPServer):
    """CONNECT, and nothing else."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Tunnel)
        self.asked: list[str] = []
        #: `name:password` that it wants to see.
        self.wants = ""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class Tunnel(socketserver.StreamRequestHandler):
    rbufsize = 0
    server: Proxy

    def handle(self) -> None:
        request = self.rfile.readline().decode()
        headers = dict(line.lower().split(": ", 1) for line in iter(self._line, ""))
        method, target, _ = request.split()
        assert method == "CONNECT", request
        wanted = f"basic {base64.b64encode(self.server.wants.encode()).decode()}".lower()
        if self.server.wants and headers.get("proxy-authorization", "") != wanted:
            self.wfile.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            return
        self.server.asked.append(target)
        there = ("127.0.0.1", int(target.rpartition(":")[2]))
        with socket.create_connection(there) as beyond:
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            ends = {self.connection: beyond, beyond: self.connection}
            while True:
                for end in select.select([*ends], [], [])[0]:
                    if not (data := end.recv(1 << 16)):
                        return
                    ends[end].sendall(data)

    def _line(self) -> str:
        return self.rfile.readline().decode().rstrip("\r\n")


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setattr(api, "_apis", {})
    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Proxy() as made:
        standing = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05})
        standing.start()
        yield made
        made.shutdown()
        standing.join()


@pytest.fixture
def hidden(k8s_rig: K8sRig, tmp_path: Path) -> Callable[..., str]:
    """A kubeconfig of the rig by a name that nobody here can resolve, with more fields of its cluster."""

    def make(**fields: str) -> str:
        config = yaml.safe_load(k8s_rig.admin.read_text())
        cluster = config["clusters"][0]["cluster"]
        port = cluster["server"].rpartition(":")[2]
        cluster |= {"server": f"https://{HIDDEN}:{port}", "tls-server-name": "127.0.0.1", **fields}
        (tmp_path / "hidden").write_text(json.dumps(config))
        return str(tmp_path / "hidden")

    return make


def test_a_proxy_of_the_kubeconfig(
    k8s: Make, k8s_node: K8sRig, proxy: Proxy, hidden: Callable[..., str]
) -> None:
    """Calls, watches, logs, and a command in a pod go through it."""
    proxy.wants = "ann:s e"
    bench = k8s(
        kubeconfig=hidden(**{"proxy-url": f"http://ann:s%20e@{proxy.address}"}),
        node_selector={"rig/kind": "real"},
        grace_period=0,
    )
    bench.add(command=("sh", "-c", "echo begun; sleep 600"))
    bench.submit()
    eventually(lambda: bench.status().state is JobState.RUNNING and "begun" in bench.log())
    (pod,) = bench.objects("pods")
    before = len(proxy.asked)
    _connect(bench.api, pod["metadata"]["name"], "nemo", ["true"]).close()
    assert len(proxy.asked) == before + 1
    bench.executor.cancel(bench.refs)
    assert {target.partition(":")[0] for target in proxy.asked} == {HIDDEN}


def test_a_proxy_of_the_environment(
    k8s: Make, proxy: Proxy, hidden: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.address}")
    bench = k8s(kubeconfig=hidden())
    assert bench.api.get("/version")
    assert proxy.asked == [bench.api.server.removeprefix("https://")]


def test_where_no_proxy_is_to_be_used(
    k8s: Make, proxy: Proxy, k8s_rig: K8sRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.address}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert k8s(kubeconfig=str(k8s_rig.admin)).api.get("/version")
    assert not proxy.asked


def test_a_proxy_that_does_not_let_one_through(
    k8s: Make, proxy: Proxy, hidden: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "FIRST_PATIENCE", 0.1)
    proxy.wants = "ann:right"
    bench = k8s(kubeconfig=hidden(**{"proxy-url": f"http://ann:wrong@{proxy.address}"}))
    with pytest.raises(ApiError, match=r"cannot be reached.*407 Proxy Authentication Required"):
        bench.api.get("/version")
