"""Logins as they are: configurations, host keys, second factors, broken links; never a traceback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nemorun.remote import connect, openssh
from nemorun.remote.connection import Connection, Timeouts
from nemorun.remote.errors import (
    AuthenticationFailed,
    ConnectError,
    ConnectionLost,
    HostKeyError,
    RemoteError,
)
from nemorun.remote.openssh import OpenSSHConnection
from nemorun.remote.prompting import terminal
from nemorun.remote.ssh import SSHConnection
from nemorun.remote.ssh_config import jump_host, lookup
from tests.remote.conftest import QUICK
from tests.slurm_rig import Rig, eventually

Dial = Callable[..., Connection]
Wan = Callable[..., str]


@pytest.fixture
def write_config(rig: Rig, tmp_path: Path) -> Callable[[str], Path]:
    """Writes an SSH configuration whose lines come before the rig's, which it includes."""

    def write(lines: str) -> Path:
        path = tmp_path / "ssh_config"
        path.write_text(f"{lines}\nMatch all\nInclude {rig.config}\n")
        return path

    return write


def keygen(path: Path, passphrase: str = "") -> Path:
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", str(path)]
    subprocess.run(words, check=True)
    return path


# Configuration


def test_the_configuration_is_sshs_own(tmp_path: Path) -> None:
    (tmp_path / "more").write_text(
        "Host cluster\n HostName 192.0.2.7\n User me\n Port 2200\n"
        " IdentityFile ~/.ssh/for-%h\n ProxyJump a,b@c:23\n"
    )
    (tmp_path / "config").write_text(f"Include {tmp_path}/more\n")
    host = lookup("cluster", tmp_path / "config")
    assert (host.address, host.user, host.port, host.key_name) == (
        "192.0.2.7",
        "me",
        2200,
        "[192.0.2.7]:2200",
    )
    assert host.identities == (Path.home() / ".ssh/for-192.0.2.7",)
    assert host.jumps == ("a", "b@c:23")
    assert lookup("you@cluster", tmp_path / "config", port=24).user == "you"
    assert lookup("cluster", tmp_path / "config", user="him", port=24).port == 24


@pytest.mark.parametrize(
    ("given", "name", "user", "port"),
    [
        ("me@cluster", "cluster", "me", 22),
        ("ssh://me@cluster:2200", "cluster", "me", 2200),
        ("me@cluster:2200", "cluster", "me", 2200),
        ("me@fd00::7", "fd00::7", "me", 22),
        ("ssh://me@[fd00::7]:23", "fd00::7", "me", 23),
    ],
)
def test_the_ways_to_write_a_host(given: str, name: str, user: str, port: int, tmp_path: Path) -> None:
    (tmp_path / "config").touch()
    host = lookup(given, tmp_path / "config")
    assert (host.name, host.address, host.user, host.port) == (name, name, user, port)


@pytest.mark.parametrize("jump", ["me@first:23", "first", "me@[fd00::7]:23", "ssh://me@first:23"])
def test_the_ways_to_write_a_jump(jump: str, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(f"Host first\n User me\n Port 23\nHost far\n ProxyJump {jump}\n")
    found = jump_host(lookup("far", tmp_path / "config"))
    assert found
    assert (found.name in ("first", "fd00::7"), found.user, found.port) == (True, "me", 23)


@pytest.mark.parametrize(
    "host", ["", "-oProxyCommand=touch /tmp/x", "a b", "a\nb", "ssh://", "ssh://-oX", "ssh://a:b"]
)
def test_a_name_that_is_none(host: str) -> None:
    with pytest.raises(ConnectError, match="is not the name of a host"):
        connect(host)


def test_a_configuration_that_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConnectError, match="there is no SSH configuration"):
        connect("x", config=tmp_path / "none")
    (tmp_path / "config").write_text("NoSuchOption yes\n")
    with pytest.raises(ConnectError, match=r"(?i)nosuchoption"):
        connect("x", config=tmp_path / "config")


def test_a_transport_that_is_none() -> None:
    with pytest.raises(RemoteError, match="did you mean 'openssh'"):
        connect("x", transport="opensh")


def test_several_jumps_with_users_and_ports(
    dial: Dial, transport: str, write_config: Callable[[str], Path]
) -> None:
    config = write_config("Host far\n HostName node001\n ProxyJump bastion,alice@login-jump:22\n User bob")
    done = dial("far", transport=transport, config=config).run("hostname; whoami")
    assert done.stdout.split() == ["node001", "bob"]


def test_a_proxy_command(dial: Dial, transport: str, rig: Rig, write_config: Callable[[str], Path]) -> None:
    command = f"ssh -F {rig.config} bastion -W %h:%p"
    config = write_config(f"Host behind\n HostName 198.18.0.3\n ProxyCommand {command}")
    assert dial("behind", transport=transport, config=config).run("hostname").stdout == "login\n"


def test_nothing_of_ssh_is_loaded_before_it_is_used() -> None:
    code = (
        "import sys, nemorun.remote as r; r.connect(transport='local').run('true');"
        "print({'paramiko', 'fabric', 'cryptography'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert done.stdout == "set()\n"


def test_it_sends_at_once(dial: Dial) -> None:
    connection = dial(transport="paramiko")
    assert isinstance(connection, SSHConnection)
    connection.connect()
    connected = connection._hops[0].sock
    assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# Which transport


def test_a_live_master_is_used_by_itself(
    dial: Dial, rig: Rig, sockets: Path, write_config: Callable[[str], Path]
) -> None:
    config = write_config(f"Host *\n ControlPath {sockets}/user-%C")
    assert dial(config=config).transport == "paramiko"
    master = ["ssh", "-F", config, "-M", "-f", "-N", "-o", "ControlPersist=60", "login"]
    subprocess.run(
        master, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    connection = dial(config=config)
    assert connection.transport == "openssh"
    before = rig.on_login("pgrep -c -f 'sshd: alice .priv.'")
    assert connection.run("hostname").stdout == "login\n"
    assert rig.on_login("pgrep -c -f 'sshd: alice .priv.'") == before  # no login of its own


def test_a_master_of_ours_serves_the_next_command(dial: Dial, rig: Rig) -> None:
    first = dial(transport="openssh")
    first.connect()
    logins = rig.on_login("pgrep -c -f 'sshd: alice .priv.'")
    first.close()
    second = dial(transport="openssh")
    assert second.run("echo yes").stdout == "yes\n"
    assert rig.on_login("pgrep -c -f 'sshd: alice .priv.'") == logins


def test_a_folder_of_sockets_that_others_can_enter_is_refused(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nemorun").mkdir(mode=0o755)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(ConnectError, match="nobody else can enter"):
        connect("login", transport="openssh", config=rig.config)


# Host keys


def fingerprint(rig: Rig, name: str) -> str:
    """The true one, of the host's own key file."""
    public = rig.home.parents[1] / "etc" / f"ssh-{name}" / "ssh_host_ed25519_key.pub"
    return subprocess.run(
        ["ssh-keygen", "-lf", public], text=True, capture_output=True, check=True
    ).stdout.split()[1]


def test_an_unknown_host_is_refused_until_it_is_accepted(
    dial: Dial, transport: str, rig: Rig, tmp_path: Path, write_config: Callable[[str], Path]
) -> None:
    config = write_config(f"Host *\n UserKnownHostsFile {tmp_path}/known")
    with pytest.raises(HostKeyError, match="is not a known host") as refused:
        dial(transport=transport, config=config).run("true")
    assert fingerprint(rig, "login") in str(refused.value)
    _, _, command = str(refused.value).partition("accept it with: ")
    said_yes = command.replace("=ask", "=accept-new")  # as who answers "yes"
    assert said_yes != command
    subprocess.run(said_yes, shell=True, check=True, stdin=subprocess.DEVNULL, capture_output=True)  # noqa: S602
    assert dial(transport=transport, config=config).run("echo in").stdout == "in\n"


def test_an_unknown_jump_host_is_refused(
    dial: Dial, transport: str, rig: Rig, tmp_path: Path, write_config: Callable[[str], Path]
) -> None:
    known = (rig.config.parent / "known_hosts").read_text().splitlines(keepends=True)
    (tmp_path / "known").write_text("".join(line for line in known if "198.19.0.2" not in line))
    config = write_config(f"Host *\n UserKnownHostsFile {tmp_path}/known")
    with pytest.raises(HostKeyError, match=r"bastion|198\.19\.0\.2"):
        dial("login-jump", transport=transport, config=config).run("true")


def test_a_changed_host_key_is_refused(
    dial: Dial, transport: str, rig: Rig, tmp_path: Path, write_config: Callable[[str], Path]
) -> None:
    other = keygen(tmp_path / "other").with_suffix(".pub").read_text().split()
    (tmp_path / "known").write_text(f"{rig.facts['login']} {other[0]} {other[1]}\n")
    config = write_config(f"Host *\n UserKnownHostsFile {tmp_path}/known")
    with pytest.raises(HostKeyError, match="is not the known one") as refused:
        dial(transport=transport, config=config).run("true")
    assert fingerprint(rig, "login") in str(refused.value)
    _, _, command = str(refused.value).partition("forget the old one with: ")
    assert command == f"ssh-keygen -R {rig.facts['login']} -f {tmp_path}/known"


# Logins


def test_a_user_that_is_not_known(dial: Dial, transport: str) -> None:
    with pytest.raises(AuthenticationFailed, match=r"login \(.*port 22\) refuses nobody-here\. Tried: "):
        dial(transport=transport, user="nobody-here").run("true")


def test_a_wrong_key(dial: Dial, transport: str, tmp_path: Path, write_config: Callable[[str], Path]) -> None:
    # The rig's own key is the second identity, which OpenSSH and we would both use: leave it out.
    key = keygen(tmp_path / "key")
    text = write_config("").read_text()
    included = Path(text.split("Include ")[1].strip()).read_text()
    own = tmp_path / "own"
    own.write_text("\n".join(line for line in included.splitlines() if "IdentityFile" not in line))
    config = tmp_path / "ssh_config"
    config.write_text(f"Host *\n IdentityFile {key}\nInclude {own}\n")
    with pytest.raises(AuthenticationFailed, match="refuses alice"):
        dial(transport=transport, config=config).run("true")
    config.write_text(
        f"Host *\n IdentityFile {key}\n IdentityFile {text and rig_key(included)}\nInclude {own}\n"
    )
    assert dial(transport=transport, config=config).run("echo in").stdout == "in\n"


def rig_key(config: str) -> str:
    return next(line.split()[1] for line in config.splitlines() if "IdentityFile" in line)


def test_an_agents_key(
    dial: Dial, transport: str, rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration names the public half only; the agent has the other."""
    public = tmp_path / "id.pub"
    shutil.copy(f"{rig.facts['key']}.pub", public)
    lines = [line for line in rig.config.read_text().splitlines() if "IdentityFile" not in line]
    config = tmp_path / "config"
    config.write_text(f"Host *\n IdentityFile {tmp_path}/id\n" + "\n".join(lines))
    agent_socket = tmp_path / "agent"
    with subprocess.Popen(["ssh-agent", "-D", "-a", agent_socket], stdout=subprocess.DEVNULL) as agent:
        try:
            eventually(agent_socket.exists)
            monkeypatch.setenv("SSH_AUTH_SOCK", str(agent_socket))
            with pytest.raises(AuthenticationFailed):
                dial(transport=transport, config=config).run("true")
            subprocess.run(["ssh-add", "-q", rig.facts["key"]], check=True, stderr=subprocess.DEVNULL)
            assert dial(transport=transport, config=config).run("echo in").stdout == "in\n"
        finally:
            agent.terminate()


def test_a_key_with_a_passphrase(dial: Dial, rig: Rig, tmp_path: Path) -> None:
    key = tmp_path / "id"
    shutil.copy(rig.facts["key"], key)
    key.chmod(0o600)
    subprocess.run(
        ["ssh-keygen", "-q", "-p", "-P", "", "-N", "moon", "-f", key], check=True, stdout=subprocess.DEVNULL
    )
    config = tmp_path / "config"
    config.write_text(
        f"Host *\n IdentityFile {key}\n" + rig.config.read_text().replace(rig.facts["key"], "/none")
    )
    asked = []

    def prompt(question: str, echo: bool) -> str:
        asked.append((question, echo))
        return "moon"

    assert dial(transport="paramiko", config=config, prompt=prompt).run("echo in").stdout == "in\n"
    assert asked == [(f"Passphrase of {key}: ", False)]
    with pytest.raises(AuthenticationFailed, match="cannot be read"):
        dial(transport="paramiko", config=config, prompt=lambda question, echo: "sun").run("true")


def test_a_second_factor_is_asked_for(dial: Dial, rig: Rig) -> None:
    asked = []

    def prompt(question: str, echo: bool) -> str:
        asked.append((question, echo))
        return str(rig.facts["password"])

    assert dial("login-2fa", transport="paramiko", prompt=prompt).run("echo in").stdout == "in\n"
    assert asked == [("(alice@login-2fa) Password: ", False)]


def test_a_second_factor_by_openssh(
    dial: Dial, rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = tmp_path / "ask"
    ask.write_text(f"#!/bin/sh\necho asked >> {tmp_path}/asked\necho '{rig.facts['password']}'\n")
    ask.chmod(0o700)
    monkeypatch.setenv("SSH_ASKPASS", str(ask))
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "force")
    for _ in range(2):
        connection = dial("login-2fa", transport="openssh")
        assert connection.run("echo in").stdout == "in\n"
        connection.close()
    assert (tmp_path / "asked").read_text() == "asked\n"  # one login for both


def test_a_wrong_answer(dial: Dial) -> None:
    connection = dial("login-2fa", transport="paramiko", prompt=lambda question, echo: "wrong")
    with pytest.raises(AuthenticationFailed, match=r"Tried: .*id_ed25519; answers"):
        connection.run("true")


def test_a_question_that_nobody_can_answer(
    dial: Dial, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path(os.devnull).open() as nobody:
        monkeypatch.setattr(sys, "stdin", nobody)
        with pytest.raises(AuthenticationFailed):
            dial("login-2fa", transport=transport).run("true")
        with pytest.raises(AuthenticationFailed, match=r"asks 'Token\[2J:', and there is no terminal"):
            terminal("Token\x1b[2J: ", False)


# Hosts out of reach, and links that break


def test_a_host_that_is_not_there(
    dial: Dial, transport: str, rig: Rig, write_config: Callable[[str], Path]
) -> None:
    with pytest.raises(ConnectError, match=r"cannot reach login \(.*, port 9\).*refused"):
        dial(transport=transport, port=9).run("true")
    with pytest.raises(ConnectError, match=r"cannot reach no-such-host\.invalid"):
        dial("no-such-host.invalid", transport=transport).run("true")
    config = write_config("Host beyond\n HostName 198.18.0.3\n Port 9\n ProxyJump bastion")
    with pytest.raises(ConnectError, match="cannot reach beyond"):
        dial("beyond", transport=transport, config=config).run("true")


def test_a_silent_network(dial: Dial, transport: str, wan: Wan) -> None:
    wan("--cut")
    connection = dial(transport=transport, timeouts=Timeouts(connect=1, auth=2, dead_after=2))
    with pytest.raises(ConnectError, match="cannot reach login"):
        connection.run("true")
    wan("--mend")
    connection.timeouts = Timeouts()  # a machine that is busy is no silent network
    assert connection.run("echo back").stdout == "back\n"


def test_a_slow_network_is_no_error(dial: Dial, transport: str, wan: Wan) -> None:
    wan("--rtt", "100", "--jitter", "10")
    connection = dial("login-jump", transport=transport)
    connection.put(b"x" * 300_000, "slow")
    assert connection.run("wc -c < slow; rm slow").stdout.strip() == "300000"


def test_a_link_that_breaks_under_a_command(dial: Dial, transport: str, wan: Wan, rig: Rig) -> None:
    connection = dial(transport=transport)
    with connection.stream("echo started; sleep 600") as stream, ThreadPoolExecutor(1) as pool:
        assert stream.read() == b"started\n"
        running = pool.submit(connection.run, "touch begun; sleep 5; touch done")
        eventually((rig.home / "begun").exists)
        wan("--cut")
        with pytest.raises(ConnectionLost, match="look for its traces") as lost:
            running.result(60)
        assert lost.value.may_have_run
        with pytest.raises(ConnectionLost):
            stream.read()
    wan("--mend")
    assert connection.run("echo anew").stdout == "anew\n"
    eventually((rig.home / "done").exists)  # a command that was begun goes on
    rig.on_login("rm -f /home/alice/begun /home/alice/done; pkill -u alice -x sleep")


def test_a_command_after_the_link_has_broken(dial: Dial, transport: str, wan: Wan, rig: Rig) -> None:
    connection = dial(transport=transport)
    connection.connect()
    wan("--cut")
    with pytest.raises(ConnectionLost, match="has not run") as lost:
        connection.run("touch ran")
    assert not lost.value.may_have_run
    wan("--mend")
    assert connection.run("echo anew; sleep 0.5; ls ran").stdout == "anew\n"


def test_what_the_library_logs_is_not_shown(rig: Rig) -> None:
    """It logs a traceback where a host closes the connection at once."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()
        code = (
            "import sys; from pathlib import Path; from nemorun.remote import connect\n"
            "try: connect('127.0.0.1', transport='paramiko', port=int(sys.argv[1])).run('true')\n"
            "except Exception as error: print(type(error).__name__)"
        )
        words = [sys.executable, "-c", code, str(server.getsockname()[1])]
        done = subprocess.run(words, text=True, capture_output=True)
    assert (done.stdout, done.stderr) == ("ConnectError\n", "")


def test_a_half_sent_file_is_never_seen(dial: Dial, transport: str, wan: Wan, rig: Rig) -> None:
    connection = dial(transport=transport)
    connection.put(b"old", "parcel")
    wan("--rtt", "200")
    cut = subprocess.Popen(["sh", "-c", f"until ls {rig.home}/parcel.*; do sleep 0.02; done >/dev/null 2>&1"])
    with pytest.raises(ConnectionLost):
        _put_and_cut(connection, cut, rig)
    rig("wan", "--mend", "--rtt", "0")
    assert connection.read("parcel") == b"old"
    rig.on_login("rm -f /home/alice/parcel*")


def _put_and_cut(connection: Connection, seen: subprocess.Popen[bytes], rig: Rig) -> None:
    """Send a large file; cut the link as soon as its beginning is there."""

    def cut() -> None:
        seen.wait(20)
        rig("wan", "--cut")

    thread = threading.Thread(target=cut)
    thread.start()
    try:
        connection.put(b"x" * 50_000_000, "parcel")
    finally:
        thread.join()


@pytest.mark.parametrize(
    "said",
    [
        "Connection closed by UNKNOWN port 65535",
        "banner exchange: Connection to UNKNOWN port 65535: Broken pipe",  # where the proxy was the quicker
        "kex_exchange_identification: Connection closed by remote host",  # of older versions
    ],
)
def test_what_ssh_says_where_nothing_was_sent(said: str) -> None:
    assert openssh._NOT_SENT.search(said)
    assert not openssh._NOT_SENT.search("Connection to login closed by remote host.")


def test_a_connection_that_ended_while_idle(dial: Dial, transport: str, rig: Rig) -> None:
    connection = dial(transport=transport)
    connection.connect()
    assert connection.run("true").stdout == ""  # its process there is the user's by now
    rig.on_login("pkill -KILL -u alice sshd")
    if isinstance(connection, SSHConnection):
        eventually(lambda: not connection._hops[0].is_active())
    else:
        assert isinstance(connection, OpenSSHConnection)
        check = [*connection._ssh("-O", "check")]
        eventually(lambda: subprocess.run(check, capture_output=True).returncode != 0)
    with pytest.raises(ConnectionLost, match="can be given again") as lost:
        connection.run("touch ran")
    assert not lost.value.may_have_run
    assert not (rig.home / "ran").exists()
    assert connection.run("echo anew").stdout == "anew\n"


def test_a_host_that_allows_few_sessions(dial: Dial, transport: str, rig: Rig, tmp_path: Path) -> None:
    """Its MaxSessions is smaller than what we allow ourselves."""
    rig.on_login("sed '1i Port 2023\\nMaxSessions 1' /etc/ssh/sshd_config | grep -v 'Port 22$' > /tmp/few")
    rig.on_login("/usr/sbin/sshd -f /tmp/few")
    known = tmp_path / "known"
    text = (rig.config.parent / "known_hosts").read_text()
    known.write_text(text.replace(f"[{rig.facts['login']}]:2022", f"[{rig.facts['login']}]:2023"))
    config = tmp_path / "config"
    config.write_text(f"Host *\n UserKnownHostsFile {known}\n" + rig.config.read_text())
    try:
        connection = dial(transport=transport, config=config, port=2023, timeouts=QUICK)
        with connection.stream("echo; sleep 60") as stream:
            assert stream.read() == b"\n"
            with pytest.raises(RemoteError, match="refuses another session"):
                connection.run("true")
        eventually(lambda: _runs(connection))  # once the host has ended the stream's session
    finally:
        rig.on_login("pkill -f 'sshd -f /tmp/few'")


def _runs(connection: Connection) -> bool:
    try:
        return connection.run("echo yes").stdout == "yes\n"
    except RemoteError:
        return False
