"""Logs on a real login host: what is new comes by one command, in whole lines, whatever the bytes are."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import pytest

from nemorun.executors.base import LogChunk
from nemorun.executors.slurm import reading
from nemorun.job import JobRef
from tests.executors.slurm.conftest import SlurmBench
from tests.executors.slurm.test_polling import Spy, folder, spy

__all__ = ["spy"]

NO_PERL = 'command() { [ "$2" != perl ]; };'


def write(bench: SlurmBench, name: str, files: dict[str, bytes], job: str = "7", age: int = 0) -> JobRef:
    """A job's folder with these files; they were written `age` seconds ago."""
    ref = bench.add(name, python="") if name not in {one.name for one in bench.jobs} else bench.ref(name)
    lines = [
        f"mkdir -p {folder(bench)}/tasks/{name}",
        f"cd {folder(bench)}/tasks/{name}",
        f"echo {job} > job",
    ]
    for path, data in files.items():
        octal = "".join(f"\\{byte:03o}" for byte in data)
        lines += [f"mkdir -p $(dirname {path})", f"printf {shlex.quote(octal)} > {path}"]
        lines += [f"touch -d '{age} seconds ago' {path}"]
    bench.on_login("; ".join(lines))
    return ref


def read(bench: SlurmBench, ref: JobRef, rank: int | None = None, **offsets: int) -> list[LogChunk]:
    known = {tuple(map(int, key[1:].split("_"))): offset for key, offset in offsets.items()}
    return [chunk for _, chunk in bench.executor.logs({ref: known}, rank)]  # type: ignore[dict-item]


def texts(chunks: Sequence[LogChunk]) -> list[tuple[int, int, str]]:
    return [(chunk.attempt, chunk.rank, chunk.text) for chunk in chunks]


@pytest.mark.parametrize("before", ["", NO_PERL], ids=["perl", "dd"])
def test_whole_lines_attempts_in_order(bench: SlurmBench, spy: Spy, before: str) -> None:
    spy.before = before
    files = {
        "journal": b"1 began 1 7 node001\n2 requeued 1 failed 1\n3 began 2 7 node001\n",
        "logs/attempt-1/rank-0.log": b"one\ntwo",  # it ended, so that is its last line
        "logs/attempt-2/rank-10.log": b"ten\n",
        "logs/attempt-2/rank-2.log": b"\xff\x00\r\nhal",
        "logs/attempt-2/rank-3.log": b"nothing whole",
        "logs/attempt-2/rank-4.log": b"1%\r2%\r3",
        "logs/attempt-2/rank-2.failure": b"{}",
        "logs/attempt-2/resume": b"",
    }
    ref = write(bench, "task", files)
    chunks = read(bench, ref)
    assert texts(chunks) == [
        (1, 0, "one\ntwo"),
        (2, 2, "\ufffd\x00\r\n"),
        (2, 4, "1%\r2%\r"),
        (2, 10, "ten\n"),
    ]
    assert [chunk.offset for chunk in chunks] == [7, 4, 6, 4]
    assert texts(read(bench, ref, rank=10)) == [(2, 10, "ten\n")]
    more = {
        "logs/attempt-2/rank-2.log": b"\xff\x00\r\nhalf\nand",
        "journal": files["journal"] + b"4 ended 2 failed 1\n",
    }
    write(bench, "task", more)
    assert texts(read(bench, ref, _1_0=7, _2_2=4, _2_4=6, _2_10=4)) == [
        (2, 2, "half\nand"),
        (2, 3, "nothing whole"),
        (2, 4, "3"),
    ]
    assert read(bench, ref, _1_0=7, _2_2=12, _2_10=4, _2_3=13, _2_4=7) == []


def test_a_line_that_stays_unfinished_is_shown(bench: SlurmBench) -> None:
    ref = write(bench, "task", {"logs/attempt-1/rank-0.log": b"Password: "}, age=60)
    assert texts(read(bench, ref)) == [(1, 0, "Password: ")]


def test_the_batch_scripts_own_log(bench: SlurmBench) -> None:
    said = b"nemorun: attempt 1 of task: job 7 on node001\nmodule: not found\n"
    said += b"srun: launch/slurm: _step_signal: Terminating StepId=7.0\n"
    said += b"nemorun: attempt 1 ended: succeeded, exit code 0\n"
    ref = write(bench, "task", {"logs/slurm-7.log": said, "logs/attempt-1/rank-0.log": b"hello\n"})
    assert texts(read(bench, ref)) == [(0, 0, "module: not found\n"), (1, 0, "hello\n")]
    assert texts(read(bench, ref, _0_0=45, _1_0=6)) == [(0, 0, "module: not found\n")]
    assert read(bench, ref, rank=1) == []
    element = write(bench, "element", {"../../logs/7_3.log": b"of the element\n"}, job="7_3")
    assert texts(read(bench, element)) == [(0, 0, "of the element\n")]


def test_much_comes_in_pieces(bench: SlurmBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BUDGET", 10_000)
    lines = b"".join(b"line %d\n" % number for number in range(2000))
    files = {
        "logs/attempt-1/rank-0.log": lines,
        "logs/attempt-1/rank-1.log": b"x" + "ä".encode() * 9000 + b"\nend\n",
    }
    ref = write(bench, "task", {})
    bench.on_login(
        f"cd {folder(bench)}/tasks/task; mkdir -p logs/attempt-1; seq 0 1999 | sed 's/^/line /' > "
        "logs/attempt-1/rank-0.log; "
        "(printf x; yes ä | head -n 9000 | tr -d '\\n'; echo; echo end) > logs/attempt-1/rank-1.log"
    )
    offsets: dict[tuple[int, int], int] = {}
    got = {0: "", 1: ""}
    calls = 0
    while chunks := list(bench.executor.logs({ref: offsets})):
        calls += 1
        for _, chunk in chunks:
            assert len(chunk.text) <= 10_000
            assert chunk.text.endswith("\n") or chunk.rank == 1
            got[chunk.rank] += chunk.text
            offsets[chunk.attempt, chunk.rank] = chunk.offset
    assert calls > 1
    assert [got[0].encode(), got[1].encode()] == [*files.values()]


def test_a_thousand_ranks_and_several_jobs_are_one_command(bench: SlurmBench, spy: Spy) -> None:
    big, small = write(bench, "big", {}), write(bench, "small", {"logs/attempt-1/rank-0.log": b"s\n"})
    none = bench.add("none", python="")
    bench.on_login(
        f"mkdir -p {folder(bench)}/tasks/big/logs/attempt-1; cd {folder(bench)}/tasks/big/logs/attempt-1; "
        "for rank in $(seq 0 1023); do echo $rank > rank-$rank.log; done"
    )
    del spy.commands[:]
    chunks = list(bench.executor.logs({big: {}, small: {}, none: {}}))
    assert len(spy.commands) == 1
    assert [(chunk.rank, chunk.text) for ref, chunk in chunks if ref is big] == [
        (rank, f"{rank}\n") for rank in range(1024)
    ]
    assert texts([chunk for ref, chunk in chunks if ref is small]) == [(1, 0, "s\n")]


def test_the_excerpt_is_the_first_failing_ranks(bench: SlurmBench, spy: Spy) -> None:
    trace = b'Traceback (most recent call last):\n  File "x.py", line 1\nValueError: no\n'
    files = {
        "logs/attempt-2/rank-0.log": b"interrupted\n",
        "logs/attempt-2/rank-0.failure": b'{"time": 20.5, "type": "E", "error": "E"}',
        "logs/attempt-2/rank-11.log": b"before\n" + trace,
        "logs/attempt-2/rank-11.failure": b'{"time": 9.25, "type": "E", "error": "E"}',
        "logs/attempt-1/rank-3.failure": b'{"time": 1.5, "type": "E", "error": "E"}',
    }
    ref = write(bench, "task", files)
    del spy.commands[:]
    assert bench.executor.excerpt(ref) == trace.decode().rstrip()
    assert len(spy.commands) == 1


def test_the_excerpt_of_ranks_that_left_no_note(bench: SlurmBench) -> None:
    said = b"srun: error: node001: task 2: Segmentation fault\nsrun: error: node001: task 0: Terminated\n"
    files = {
        "logs/slurm-7.log": said,
        "logs/attempt-1/rank-0.log": b"0\n",
        "logs/attempt-1/rank-2.log": b"2\n",
    }
    assert bench.executor.excerpt(write(bench, "task", files)) == "2"
    said = b"nemorun: attempt 1 of task: job 7 on node001\nmodule: command not found\n"
    ref = write(bench, "early", {"logs/slurm-7.log": said, "logs/attempt-1/rank-0.log": b""})
    assert bench.executor.excerpt(ref) == "module: command not found"
    assert bench.executor.excerpt(bench.add("never", python="")) == ""


def test_logs_of_a_real_job(bench: SlurmBench) -> None:
    bench.add(python="print('hello')")
    bench.submit()
    bench.wait()
    assert bench.log() == "hello\n"
