"""A command's own output, told from what a login shell prints around it, however the bytes arrive."""

from __future__ import annotations

import subprocess

import pytest

from nemorun.remote.framing import Frame, new_token, wrap
from nemorun.remote.paths import quote_path

TOKEN = "nemorun-0123"
ARRIVED = (
    b"Welcome!\nnemorun-0123:beg\nnemorun-0123:begin\nown nemorun-0123:en \xff\nnemorun-0123:end:17\nBye\n"
)


@pytest.mark.parametrize("size", range(1, len(ARRIVED) + 1))
def test_marks_are_found_wherever_the_chunks_break(size: int) -> None:
    frame = Frame(TOKEN)
    own = b"".join(frame.feed(ARRIVED[i : i + size]) for i in range(0, len(ARRIVED), size))
    assert own == b"own nemorun-0123:en \xff\n"
    assert frame.code == 17


def test_output_is_given_as_it_comes() -> None:
    frame = Frame(TOKEN)
    assert frame.feed(b"nemorun-0123:begin\na line\n") == b"a line\n"
    assert frame.feed(b"no end of it") == b"no end of it"
    assert frame.code is None


def test_what_comes_without_a_mark_is_kept_to_be_shown() -> None:
    frame = Frame(TOKEN)
    assert frame.feed(b"This account is not available.\n") == b""
    assert frame.outside == b"This account is not available.\n"
    assert not frame.began


@pytest.mark.parametrize(
    "command",
    ["true", "exit 3", "printf x", "echo 'a  b'\necho \"it's $((1 + 1))!\"", "cat <<E\n$HOME\nE", "echo ("],
)
@pytest.mark.parametrize("ends_with_reader", [False, True])
def test_a_wrapped_command_is_the_command(command: str, ends_with_reader: bool) -> None:
    token = new_token()
    line = wrap(
        f"umask 022\n{command}" if ends_with_reader else command, token, ends_with_reader=ends_with_reader
    )
    bare = subprocess.run(["sh", "-c", command], capture_output=True)
    shell = ["sh", "-c", f"echo banner; echo banner >&2; {line}"]
    if ends_with_reader:  # its input has to stay open
        with subprocess.Popen(
            shell, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as held:
            assert held.stdout
            printed = held.stdout.read()
    else:
        printed = subprocess.run(shell, capture_output=True).stdout
    frame = Frame(token)
    assert frame.feed(printed) == bare.stdout
    assert frame.code == bare.returncode


def test_the_command_line_holds_no_whole_mark() -> None:
    for ends_with_reader in (False, True):
        line = wrap("ps -ef", TOKEN, ends_with_reader=ends_with_reader)
        assert f"{TOKEN}:" not in line


@pytest.mark.parametrize("shell", ["/bin/sh", "bash -l", "bash --norc"])
def test_another_shell_runs_it(shell: str) -> None:
    line = wrap("echo $0", token := new_token(), shell)
    frame = Frame(token)
    frame.feed(subprocess.run(["sh", "-c", line], capture_output=True).stdout)
    assert frame.code == 0


@pytest.mark.parametrize(
    ("path", "meaning"),
    [
        ("~/a b", "/home of me/a b"),
        ("~", "/home of me"),
        ("$SCRATCH/x", "/big/space x/x"),
        ("${SCRATCH}y/$SCRATCH", "/big/space xy//big/space x"),
        ("~root/x", "/root/x"),
        ("a~b/~c", "a~b/~c"),
        ('it\'s; rm -rf $(x) `y` "z"\n*', 'it\'s; rm -rf $(x) `y` "z"\n*'),
        ("$", "$"),
        ("-n", "./-n"),
        ("", ""),
    ],
)
def test_a_path_means_itself(path: str, meaning: str) -> None:
    env = {"HOME": "/home of me", "SCRATCH": "/big/space x", "PATH": "/bin:/usr/bin"}
    done = subprocess.run(
        ["sh", "-c", f"printf %s {quote_path(path)}"], env=env, capture_output=True, text=True
    )
    assert done.stdout == meaning


def test_a_variable_that_is_not_set_is_an_error() -> None:
    done = subprocess.run(["sh", "-c", f"echo {quote_path('$NO_SUCH/x')}"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "NO_SUCH" in done.stderr
