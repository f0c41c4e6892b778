"""What pods write: each line once, by rank and attempt, wherever the reader stopped; of gone pods, too."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from nemorun.executors.kubernetes import keeping
from nemorun.executors.kubernetes.api import Api
from nemorun.executors.kubernetes.attempts import Attempt
from nemorun.executors.kubernetes.log_lines import Cursor, new_lines
from nemorun.executors.kubernetes.refusals import ApiError, Lost, NotFound
from nemorun.job import JobRef, JobState, Reason, Resources
from tests.executors.kubernetes.conftest import K8sBench, eventually
from tests.k8s_rig import K8sRig

Bench = Callable[..., K8sBench]


# --- lines, without a cluster


class Log:
    """A container's log as the kubelet gives it: from a whole second on."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, int, str]] = []

    def write(self, text: str, second: int, nanos: int = 0) -> None:
        self.lines.append((second, nanos, text))

    def since(self, second: int) -> list[bytes]:
        return [_stamp(at, nanos) + text.encode() for at, nanos, text in self.lines if at >= second]


def _stamp(second: int, nanos: int) -> bytes:
    day = datetime.fromtimestamp(second, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{nanos:09d}".rstrip("0") if nanos else ""  # as Go writes it
    return f"{day}{fraction}Z ".encode()


def read(log: Log, cursor: Cursor) -> list[str]:
    return [line.decode() for line in new_lines(log.since(cursor.second), cursor)]


@pytest.mark.parametrize("seed", range(20))
def test_each_line_comes_once_wherever_the_reader_stops(seed: int) -> None:
    """Many lines of one second, equal lines, equal timestamps, and a clock that is set back now and then."""
    chance = random.Random(seed)
    log, cursor, seen, written = Log(), Cursor(), [], []
    second, nanos = 1_000_000_000, 0
    for _ in range(300):
        step = chance.random()
        if step < 0.1:
            second, nanos = second + chance.randint(1, 3), 0
        elif step < 0.6:
            nanos = min(nanos + chance.randint(0, 5) * 100_000_000, 999_999_999)
        elif step < 0.63:
            nanos = max(nanos - 300_000_000, 0)
        text = f"line {chance.randint(0, 3)}"
        log.write(text, second, nanos)
        written.append(text)
        if chance.random() < 0.2:
            seen += read(log, cursor)
            cursor = Cursor(**vars(cursor))  # as another process takes it up
    assert seen + read(log, cursor) == written


def test_a_clock_that_is_set_back_by_seconds_repeats_nothing() -> None:
    log, cursor = Log(), Cursor()
    for number, second in enumerate((1000, 1001, 990, 991, 1001)):
        log.write(f"line {number}", second)
    assert read(log, cursor) == [f"line {number}" for number in range(5)]
    assert read(log, cursor) == []
    log.write("line 5", 1002)
    assert read(log, cursor) == ["line 5"]


def test_a_log_that_the_node_has_rotated_goes_on_with_a_word() -> None:
    log, cursor = Log(), Cursor()
    for number in range(5):
        log.write(f"old {number}", 1000, number)
    read(log, cursor)
    log.lines.clear()
    assert read(log, cursor) == []  # a new file that is empty yet
    log.write("new", 1000, 7)
    log.write("newer", 1001)
    first, *rest = read(log, cursor)
    assert "lines may be missing here" in first
    assert rest == ["new", "newer"]
    assert read(log, cursor) == []


def test_what_the_kubelet_says_itself_is_no_line() -> None:
    cursor = Cursor()
    assert list(new_lines([b"unable to retrieve container logs for containerd://x"], cursor)) == []
    assert cursor == Cursor()


# --- kept by rank and attempt, with a server of our own


class Answer:
    def __init__(self, blocks: list[bytes]) -> None:
        self.blocks = blocks

    def stream(self, size: int) -> Iterator[bytes]:
        yield from self.blocks

    def close(self) -> None:
        pass


class FakeApi(Api):
    """Serves the logs of pods; a pod that is not there is NotFound."""

    def __init__(self) -> None:
        super().__init__("", None, "ml")
        self.pods: dict[str, Log] = {}
        self.asked: list[dict[str, Any]] = []

    server = "https://fake"  # type: ignore[assignment]

    def open(self, path: str, *, silence: float | None = None, **query: Any) -> Any:
        self.asked.append(query)
        log = self.pods.get(path.split("/")[-2])
        if log is None:
            raise NotFound("no such pod", status=404)
        since = query.get("sinceTime", "1970-01-01T00:00:00Z").replace("Z", "+00:00")
        data = b"".join(line + b"\n" for line in log.since(int(datetime.fromisoformat(since).timestamp())))
        return Answer([data[at : at + 50] for at in range(0, len(data), 50)])

    def text(self, path: str, **query: Any) -> str:
        lines = b"".join(self.open(path, **query).blocks).decode().splitlines(keepends=True)
        return "".join(lines[-query["tailLines"] :])


def start(index: int = 0, number: int = 1, **fields: Any) -> Attempt:
    return Attempt(index, number, f"p{index}-{number}", f"u{index}{number}", ranks=2, **fields)


def files(run_dir: Path) -> dict[str, str]:
    found = sorted(run_dir.glob("logs/attempt-*/rank-*.log"))
    return {f"{path.parent.name[8:]}/{path.stem[5:]}": path.read_text() for path in found}


def fill(log: Log, *lines: str, at: int = 1000) -> Log:
    for number, line in enumerate(lines):
        log.write(line, at, number)
    return log


def test_ranks_and_attempts_are_told_apart(tmp_path: Path) -> None:
    """The pod of node 1 goes through two attempts in place, and is replaced for the third."""
    api = FakeApi()
    api.pods["p1-1"] = fill(
        Log(),
        "nemorun: pod 1 of 2 waits for the others",
        "nemorun: attempt 1",
        "[rank 2] one",
        "[rank 3] two",
        "[rank 9] not a rank of this pod",
        "nemorun: starts again: another pod has ended or was lost",
        "nemorun: attempt 2",
        "[rank 3] three",
    )
    # a run folder of its own: this pod counts from 1 again
    api.pods["p1-2"] = fill(Log(), "unpacking", "nemorun: attempt 1", "[rank 2] four")
    keeping.read_on(api, str(tmp_path), [start(1, 1, over=True), start(1, 2)])
    assert files(tmp_path) == {
        "1/2": "one\n[rank 9] not a rank of this pod\n"
        "nemorun: starts again: another pod has ended or was lost\n",
        "1/3": "two\n",
        "2/3": "three\n",
        "3/2": "unpacking\nfour\n",
    }


def test_what_was_read_to_its_end_is_not_asked_for_again(tmp_path: Path) -> None:
    api = FakeApi()
    api.pods["p0-1"] = fill(Log(), "[rank 0] last")
    for _ in range(3):
        keeping.read_on(api, str(tmp_path), [start(over=True)])
    assert len(api.asked) == 1
    assert files(tmp_path) == {"1/0": "last\n"}


def test_a_long_log_comes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "BUDGET", 100)
    api = FakeApi()
    lines = [f"line {number}" for number in range(100)]
    api.pods["p0-1"] = fill(Log(), *lines)
    for _ in range(3):
        keeping.read_on(api, str(tmp_path), [start(over=True)])
    assert 0 < len(files(tmp_path)["1/0"].splitlines()) < 100
    for _ in range(10):
        keeping.read_on(api, str(tmp_path), [start(over=True)])
    assert files(tmp_path)["1/0"].splitlines() == lines


def test_a_lost_connection_keeps_what_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from urllib3.exceptions import ProtocolError

    api = FakeApi()
    api.pods["p0-1"] = fill(Log(), *(f"line {number}" for number in range(9)))
    whole = Answer.stream

    def broken(self: Answer, size: int) -> Iterator[bytes]:
        yield from self.blocks[:3]
        raise ProtocolError("cut")

    monkeypatch.setattr(Answer, "stream", broken)
    with pytest.raises(Lost):
        keeping.read_on(api, str(tmp_path), [start(over=True)])
    some = files(tmp_path)["1/0"].splitlines()
    assert 0 < len(some) < 9
    monkeypatch.setattr(Answer, "stream", whole)
    keeping.read_on(api, str(tmp_path), [start(over=True)])
    assert files(tmp_path)["1/0"].splitlines() == [f"line {number}" for number in range(9)]


def test_the_last_lines_of_a_pod_that_nobody_read_outlive_it(tmp_path: Path) -> None:
    api = FakeApi()
    api.pods["p0-1"] = fill(Log(), *(f"[rank 1] {number}" for number in range(2 * keeping.TAIL)))
    ended = start(over=True, reason=Reason.EXIT_CODE, code=1)
    keeping.keep_last_lines(api, JobRef("x", "t.x", str(tmp_path)), [ended])
    assert files(tmp_path) == {}  # as long as the pod is there, all of it can be had
    api.pods.clear()
    keeping.read_on(api, str(tmp_path), [ended])
    kept = files(tmp_path)["1/1"].splitlines()
    assert kept == [str(number) for number in range(keeping.TAIL, 2 * keeping.TAIL)]
    assert keeping.last_lines(api, str(tmp_path), ended, 1)[-1] == kept[-1]


def test_a_container_that_does_not_write_yet_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = FakeApi()

    def not_yet(path: str, **query: Any) -> Any:
        raise ApiError("container nemo is waiting to start", status=400)

    with monkeypatch.context() as patched:
        patched.setattr(api, "open", not_yet)
        keeping.read_on(api, str(tmp_path), [start()])
    api.pods["p0-1"] = fill(Log(), "first")
    keeping.read_on(api, str(tmp_path), [start()])
    assert files(tmp_path) == {"1/0": "first\n"}


# --- on a real node


@pytest.fixture
def real(k8s_node: K8sRig, k8s: Bench) -> Bench:
    def make(**fields: Any) -> K8sBench:
        small = {"node_selector": {"rig/kind": "real"}, "image_pull_policy": "IfNotPresent", "cpus": "20m"}
        return k8s(**{**small, "grace_period": 2, **fields})

    return make


WRITES = """
import os, sys, time
rank = os.environ["RANK"]
for number in range(200):
    print(f"{rank}: line {number} é", flush=number % 7 == 0)
    if number % 50 == 0:
        time.sleep(0.3)
sys.stdout.write(f"{rank}: " + "x" * 40000 + "\\n")
sys.stdout.write(f"{rank}: no newline")
"""


def test_ranks_of_two_pods_are_followed(real: Bench) -> None:
    bench = real()
    ref = bench.add(python=WRITES, resources=Resources(2, 2))
    bench.submit()
    offsets: dict[tuple[int, int], int] = {}
    texts: dict[int, str] = {}

    def followed() -> bool:
        ended = bench.status().state.ended
        new = 0
        for _, chunk in bench.executor.logs({ref: offsets}):
            offsets[chunk.attempt, chunk.rank] = chunk.offset
            texts[chunk.rank] = texts.get(chunk.rank, "") + chunk.text
            new += 1
        return ended and not new

    eventually(followed)
    assert bench.status().state is JobState.SUCCEEDED
    for rank in range(4):
        lines = [line for line in texts[rank].splitlines() if not line.startswith("nemorun: ")]
        assert lines[:200] == [f"{rank}: line {number} é" for number in range(200)]
        assert lines[201:] == [f"{rank}: no newline"]
        assert lines[200] == f"{rank}: " + "x" * 40000
    # another reader, later, of one rank, when the pods are gone
    before = bench.log(rank=3)
    assert before == texts[3]
    bench.rig.kubectl("delete", "pods", "--all", "-n", bench.namespace, "--wait=true")
    assert bench.log(rank=3) == before


def test_of_a_task_that_failed_the_last_words_are_told_and_kept(real: Bench) -> None:
    bench = real()
    ref = bench.add(python="print('begun')\nraise ValueError('what now?')")
    bench.submit()
    now = bench.wait()["task"]
    assert (now.state, now.reason, now.exit_code) == (JobState.FAILED, Reason.EXIT_CODE, 1)
    assert "on rig-node" in now.message
    words = bench.executor.excerpt(ref)
    assert words.startswith("Traceback") and words.endswith("ValueError: what now?")
    bench.rig.kubectl("delete", "pods", "--all", "-n", bench.namespace, "--wait=true")
    assert bench.executor.excerpt(ref) == words
    assert bench.log().startswith("begun\n")
