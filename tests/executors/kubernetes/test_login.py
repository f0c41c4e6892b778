"""Ways to log in: contexts and their namespaces, a program that says who one is, a pod's own account."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from nemorun.errors import ConfigError
from nemorun.executors.kubernetes import api, login
from tests.executors.kubernetes.conftest import K8sBench, eventually
from tests.k8s_rig import K8sRig

Make = Callable[..., K8sBench]


@pytest.fixture(autouse=True)
def own_connections(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(api, "_apis", {})
    yield


def test_a_context_and_its_namespace(k8s: Make, k8s_rig: K8sRig, tmp_path: Path) -> None:
    config = yaml.safe_load(k8s_rig.admin.read_text())
    other = {**config["contexts"][0]["context"], "namespace": "kube-system"}
    config["contexts"].append({"name": "other", "context": other})
    path = tmp_path / "config"
    path.write_text(json.dumps(config))
    assert k8s(kubeconfig=str(path), namespace=None).api.namespace == "default"
    bench = k8s(kubeconfig=str(path), namespace=None, context="other")
    assert bench.api.namespace == "kube-system"
    assert bench.api.find(bench.api.path("ConfigMap", "extension-apiserver-authentication"))
    with pytest.raises(ConfigError, match="none"):
        assert k8s(kubeconfig=str(path), namespace=None, context="none").api.namespace


def test_a_program_that_logs_in(k8s: Make, k8s_rig: K8sRig, tmp_path: Path) -> None:
    config = yaml.safe_load(k8s_rig.admin.read_text())
    user = config["users"][0]["user"]
    keys = {"clientCertificateData": "client-certificate-data", "clientKeyData": "client-key-data"}
    status = {name: base64.b64decode(user[key]).decode() for name, key in keys.items()}
    version = "client.authentication.k8s.io/v1"
    answer = {"apiVersion": version, "kind": "ExecCredential", "status": status}
    program = f"print({json.dumps(json.dumps(answer))})"
    run = {
        "apiVersion": version,
        "command": sys.executable,
        "args": ["-c", program],
        "interactiveMode": "Never",
    }
    config["users"][0]["user"] = {"exec": run}
    path = tmp_path / "config"
    path.write_text(json.dumps(config))
    assert k8s(kubeconfig=str(path)).api.get("/api/v1/nodes")["items"]


def _config(path: Path, user: object, context: str = "here") -> str:
    """Of a server that nobody has to ask: what is wrong is seen before."""
    config = {
        "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
        "contexts": [{"name": name, "context": {"cluster": "c", "user": "u"}} for name in ("here", "there")],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(json.dumps(config))
    return str(path)


@pytest.mark.parametrize(
    ("command", "said"), [("/no/such/program", "No such file"), ("false", "process returned 1")]
)
def test_a_program_that_does_not_log_in(
    tmp_path: Path, command: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    run = {"apiVersion": "client.authentication.k8s.io/v1", "command": command, "interactiveMode": "Never"}
    path = _config(tmp_path / "config", {"exec": run})
    with pytest.raises(ConfigError, match=f"no way to log in: .*{said}"):
        login.load_configuration(path, None, named=True)
    assert capfd.readouterr().err == ""


def test_a_context_that_is_not_there(tmp_path: Path) -> None:
    path = _config(tmp_path / "config", {"token": "t"})
    with pytest.raises(ConfigError, match=r"has no 'their'; it has here, there; did you mean 'there'"):
        login.load_configuration(path, "their", named=True)


@pytest.mark.parametrize("text", ["a: [b\n", "", "just words", "clusters: 3\n"])
def test_a_file_that_is_no_kubeconfig(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    for context in (None, "other"):
        with pytest.raises(ConfigError, match="cannot be used"):
            login.load_configuration(str(path), context, named=True)


def test_the_client_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("kubernetes", "kubernetes.client", "urllib3"):
        monkeypatch.setitem(sys.modules, name, None)
    one = api.Api(_config(tmp_path / "config", {"token": "t"}), None, "ml")
    with pytest.raises(ConfigError, match="pip install kubernetes"):
        one.get("/version")


def test_connections_of_many_pods_are_kept(tmp_path: Path) -> None:
    path = _config(tmp_path / "config", {"token": "t"})
    one = api.Api(path, None, "ml")
    pool = one._pool_manager().connection_from_url("https://127.0.0.1:1")
    assert pool.pool.maxsize >= 1000


def test_a_pods_own_account(
    k8s: Make, k8s_rig: K8sRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kubernetes.config import incluster_config

    bench = k8s()
    kind = "kubernetes.io/service-account-token"
    secrets = eventually(
        lambda: [one for one in bench.api.get(bench.api.path("Secret"))["items"] if one["type"] == kind]
    )
    files = {"token": "SERVICE_TOKEN_FILENAME", "ca.crt": "SERVICE_CERT_FILENAME", "namespace": None}
    for name, constant in files.items():
        path = tmp_path / name
        path.write_bytes(base64.b64decode(secrets[0]["data"][name]))
        if constant:
            monkeypatch.setattr(incluster_config, constant, str(path))
    monkeypatch.setattr(login, "_OWN_NAMESPACE", tmp_path / "namespace")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    host, _, port = k8s_rig.facts["server"].removeprefix("https://").partition(":")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    inside = k8s(kubeconfig=None, namespace=None)
    assert inside.api.namespace == bench.namespace
    account = f"system:serviceaccount:{bench.namespace}:default"
    with pytest.raises(api.ApiError, match=f"user '{account}' may not list jobs"):
        inside.api.get(inside.api.path("Job", api_version="batch/v1"))


def test_no_kubeconfig_at_all(k8s: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"there is no file .*/none; set the executor's 'kubeconfig'"):
        assert k8s(kubeconfig=None, namespace=None).api.namespace
