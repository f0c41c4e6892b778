"""Commands, streams and files: the same by every transport, against a real sshd."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nemorun.remote.connection import MAX_STREAMS, Connection
from nemorun.remote.errors import CommandFailed, CommandTimeout, RemoteError, RemoteFileMissing
from tests.slurm_rig import Rig, eventually

MUCH = bytes(range(256)) * 12_000  # 3 MB, all bytes


def test_a_command_tells_all_three(connection: Connection) -> None:
    done = connection.run("echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")


@pytest.mark.parametrize(
    ("command", "printed"),
    [
        ("printf no-newline", "no-newline"),
        ("echo \"it's\" '$HOME' '!' ünï", "it's $HOME ! ünï\n"),
        ("for i in 1 2\ndo echo $i\ndone", "1\n2\n"),
        ("cat", ""),
    ],
)
def test_commands_arrive_as_they_are(connection: Connection, command: str, printed: str) -> None:
    assert connection.run(command, check=True).stdout == printed


def test_a_syntax_error_is_the_commands_own(connection: Connection) -> None:
    done = connection.run("echo (")
    assert done.returncode == 2
    assert "yntax error" in done.stderr


def test_input_and_output_may_be_large(connection: Connection, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(MUCH)
    counted = "cat > /dev/null; echo done"
    assert connection.run(counted, tmp_path / "file").stdout == "done\n"
    assert connection.run("wc -c", MUCH).stdout.strip() == str(len(MUCH))
    assert connection.run("tee /dev/stderr", "ä\n" * 300_000).stdout == "ä\n" * 300_000


def test_a_command_need_not_read_its_input(connection: Connection) -> None:
    assert connection.run("echo early", MUCH).stdout == "early\n"


def test_input_that_is_not_there(connection: Connection, tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match=r"cannot read .*/none: No such file"):
        connection.run("cat", tmp_path / "none")


def test_what_stays_in_the_background_holds_nothing_up(connection: Connection) -> None:
    done = connection.run("sleep 60 & echo $!", timeout=20)
    connection.run(f"kill {done.stdout}", check=True)


def test_a_failure_that_counts(connection: Connection) -> None:
    with pytest.raises(CommandFailed, match=r"exit code 4 from `echo why >&2; exit 4`: why"):
        connection.run("echo why >&2; exit 4", check=True)


def test_a_command_that_takes_too_long(connection: Connection) -> None:
    with pytest.raises(CommandTimeout, match=r"not done within 0\.3 s"):
        connection.run("sleep 20", timeout=0.3)
    assert connection.run("echo still here").stdout == "still here\n"


def test_a_shell_that_is_killed(connection: Connection) -> None:
    with pytest.raises(RemoteError, match="has run in part"):
        connection.run("kill -9 $$")


def test_a_command_that_is_too_long(connection: Connection) -> None:
    with pytest.raises(RemoteError, match=r"at most 100,000 fit.*run\('sh', stdin"):
        connection.run("echo " + "x" * 100_000)
    assert connection.run("sh", "echo " + "x" * 200_000).stdout == "x" * 200_000 + "\n"


def test_many_threads_share_it(connection: Connection) -> None:
    with ThreadPoolExecutor(24) as pool:
        done = list(pool.map(lambda i: connection.run(f"echo {i}; sleep 0.05").stdout, range(24)))
    assert done == [f"{i}\n" for i in range(24)]


def test_a_stream_is_read_while_it_runs(connection: Connection, folder: str) -> None:
    command = f"echo one; while [ ! -e {folder}/go ]; do sleep 0.05; done; echo two; echo err >&2; exit 5"
    with connection.stream(command) as stream:
        assert stream.read() == b"one\n"
        assert stream.read(timeout=0.01) == b""
        assert stream.returncode is None
        connection.put(b"", f"{folder}/go")
        assert b"".join(stream) == b"two\n"
    assert (stream.returncode, stream.stderr) == (5, "err\n")


def test_a_stream_ends_with_its_reader(connection: Connection, folder: str) -> None:
    with connection.stream(f"echo $$; sh -c 'sleep 600'; touch {folder}/went-on") as stream:
        pid = (stream.read() or b"").decode().strip()
        eventually(lambda: connection.run(f"pgrep -s {pid} sleep").returncode == 0)
    eventually(lambda: connection.run(f"pgrep -s {pid}").returncode == 1)
    assert connection.run(f"ls {folder}").stdout == ""


def test_streams_leave_room_for_commands(connection: Connection) -> None:
    streams = [connection.stream("echo; sleep 600") for _ in range(MAX_STREAMS)]
    try:
        assert [stream.read() for stream in streams] == [b"\n"] * MAX_STREAMS
        with pytest.raises(RemoteError, match=f"{MAX_STREAMS} streams are open"):
            connection.stream("echo")
        assert connection.run("echo yes").stdout == "yes\n"
    finally:
        for stream in streams:
            stream.close()
    with connection.stream("echo free again") as stream:
        assert stream.read() == b"free again\n"


def test_a_file_goes_and_comes(connection: Connection, folder: str, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(MUCH)
    connection.put(tmp_path / "local", f'{folder}/new/it\'s a "file"')
    connection.get(f'{folder}/new/it\'s a "file"', tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == MUCH
    assert (tmp_path / "back").stat().st_mode & 0o777 == 0o600
    assert connection.run(f"ls -A {folder}/new").stdout == 'it\'s a "file"\n'


def test_files_are_private_or_as_asked(connection: Connection, folder: str) -> None:
    connection.put(b"secret", f"{folder}/new/private")
    connection.put(b"#!/bin/sh\n", f"{folder}/script", mode=0o755)
    listed = connection.run(f"cd {folder} && stat -c %a new new/private script").stdout
    assert listed.split() == ["700", "600", "755"]


def test_a_file_is_replaced_whole(connection: Connection, folder: str) -> None:
    connection.put(b"old", f"{folder}/file")
    connection.put(b"new", f"{folder}/file")
    assert connection.read(f"{folder}/file") == b"new"
    assert connection.run(f"ls -A {folder}").stdout == "file\n"


def test_reading_goes_on_from_an_offset(connection: Connection, folder: str) -> None:
    connection.put(b"0123456789\xff", f"{folder}/log")
    assert connection.read(f"{folder}/log", 4) == b"456789\xff"
    assert connection.read(f"{folder}/log", 4, 3) == b"456"
    assert connection.read(f"{folder}/log", 11) == connection.read(f"{folder}/log", 99) == b""


def test_home_and_variables_are_the_other_machines(connection: Connection) -> None:
    home = connection.run("echo $HOME").stdout.strip()
    name = connection.run("mktemp -u nemorun-test-XXXXXXXX").stdout.strip()
    connection.put(b"x", f"~/{name}")
    assert connection.read(f"$HOME/{name}") == connection.read(f"{home}/{name}") == b"x"
    connection.run(f"rm ~/{name}", check=True)
    with pytest.raises(RemoteError, match="NO_SUCH"):
        connection.put(b"x", "$NO_SUCH/x")


def test_files_that_cannot_be(connection: Connection, folder: str, tmp_path: Path) -> None:
    with pytest.raises(RemoteFileMissing, match=f"there is no file {folder}/none"):
        connection.read(f"{folder}/none")
    with pytest.raises(RemoteFileMissing):
        connection.get(f"{folder}/none", tmp_path / "none")
    assert not list(tmp_path.iterdir())
    with pytest.raises(RemoteError, match="not a readable file"):
        connection.read(folder)
    with pytest.raises(RemoteError, match=r"cannot write .*it is a folder"):
        connection.put(b"x", folder)
    with pytest.raises(RemoteError, match="cannot write /proc/x/y"):
        connection.put(b"x", "/proc/x/y")
    with pytest.raises(RemoteError, match=r"cannot read .*/none"):
        connection.put(tmp_path / "none", f"{folder}/x")


def test_a_full_disk_leaves_nothing(connection: Connection, folder: str) -> None:
    connection.put(b"old", f"{folder}/file")
    with pytest.raises(RemoteError, match="cannot write"):
        connection.put(b"x", "/dev/full/x")
    assert connection.read(f"{folder}/file") == b"old"


def test_input_that_breaks_off_leaves_nothing(
    connection: Connection, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a connection breaks: over there it looks like the end of the input."""
    connection.put(b"old", f"{folder}/file")
    execute = connection._execute
    monkeypatch.setattr(
        connection,
        "_execute",
        lambda command, stdin, *rest: execute(command, stdin[:-1], *rest),  # type: ignore[index]
    )
    with pytest.raises(RemoteError, match="not all of it arrived"):
        connection.put(b"new", f"{folder}/file")
    monkeypatch.undo()
    assert connection.read(f"{folder}/file") == b"old"
    assert connection.run(f"ls -A {folder}").stdout == "file\n"


def test_a_login_shells_banner_is_not_output(rig: Rig, connection: Connection) -> None:
    if connection.transport == "local":
        pytest.skip("no login, no banner")
    start = rig.home / ".bashrc"
    start.write_text("echo 'Welcome to the cluster'; echo 'Quota: 97 %' >&2; printf 'no newline'\n")
    try:
        done = connection.run("echo own; echo err >&2")
        assert (done.stdout, done.stderr) == ("own\n", "err\n")
        with connection.stream("echo own") as stream:
            assert b"".join(stream) == b"own\n"
        start.write_text("echo 'This account has expired.'; exit 7\n")
        with pytest.raises(RemoteError, match=r"status 7 before it came .* This account has expired\."):
            connection.run("echo own")
    finally:
        start.unlink()


def test_it_connects_once_for_many_threads(connection: Connection) -> None:
    connection.close()
    barrier = threading.Barrier(4)

    def first(_: int) -> str:
        barrier.wait(10)
        return connection.run("echo yes").stdout

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(first, range(4))) == ["yes\n"] * 4
