"""squeue, sacct and scontrol of several versions, as they were recorded, read into the same rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemorun.executors.slurm import parse
from nemorun.executors.slurm.parse import SEPARATOR, Row

RECORDED = Path(__file__).parent / "recorded"


def lines(name: str) -> list[str]:
    return (RECORDED / name).read_text().replace("|", SEPARATOR).splitlines()


def by_id(rows: list[Row]) -> dict[str, Row]:
    assert len({row.id for row in rows}) == len(rows)
    return {row.id: row for row in rows}


def test_squeue_as_text() -> None:
    rows = by_id(parse.queue_text(["squeue: warning: a word between", *lines("squeue-22.05.txt")]))
    assert rows["10"] == Row(
        "10",
        "10",
        "run.k3x9q2",
        "RUNNING",
        start=1795469793,
        end=1795470093,
        nodes="node[001-002]",
        partition="batch",
        qos="normal",
        limit="5:00",
    )
    assert (rows["12"].reason, rows["12"].dependency) == ("DependencyNeverSatisfied", "afterok:11(failed)")
    assert (rows["17"].reason, rows["17"].start) == ("BeginTime", 1795480593)
    assert (rows["18"].start, rows["18"].limit) == (None, "10:00:00")
    assert rows["2"].raw == "2", "the first component stands for the heterogeneous job"
    assert rows["21_3"].reason == "JobArrayTaskLimit"
    assert (rows["21_0"].raw, rows["21_0"].state) == ("23", "RUNNING")


def test_sacct_as_text() -> None:
    rows = parse.accounting_text(lines("sacct-22.05.txt"))
    assert [(row.state, row.start) for row in rows if row.id == "42"] == [
        ("NODE_FAIL", 1795469999),
        ("REQUEUED", 1795470056),
        ("COMPLETED", 1795470070),
    ]
    said = {row.id: row for row in rows}
    assert (said["22"].state, said["22"].by) == ("CANCELLED", "3001")
    assert (said["9"].state, said["9"].code, said["9"].steps) == ("FAILED", 1, ("FAILED", "OUT_OF_MEMORY"))
    assert (said["13"].start, said["13"].end, said["13"].nodes, said["13"].reason) == (
        None,
        1795469794,
        "",
        "Dependency",
    )
    assert said["6"].code == 3
    assert said["21_2"].raw == "27"
    assert [number for number in said if number.startswith("28_")] == [f"28_{n}" for n in range(2, 10)]
    assert said["2"].nodes == "node001"


def test_sacct_as_text_of_other_versions() -> None:
    old = {row.id: row for row in parse.accounting_text(lines("sacct-20.11.txt"))}
    assert (old["30"].state, old["30"].signal, old["30"].failed_node) == ("OUT_OF_MEMORY", 125, "")
    assert (old["31_4"].state, old["31_4"].by, old["32"].state) == ("CANCELLED", "0", "PREEMPTED")
    new = {row.id: row for row in parse.accounting_text(lines("sacct-24.11.txt"))}
    assert (new["30"].state, new["30"].failed_node, new["31"].failed_node) == ("NODE_FAIL", "node064", "")


def test_scontrol() -> None:
    rows = by_id(parse.control_text(["No jobs in the system", *lines("scontrol-22.05.txt")]))
    assert (rows["2"].state, rows["2+1"].nodes, rows["2+1"].raw) == ("COMPLETED", "node002", "3")
    assert (rows["6"].code, rows["6"].end) == (3, 1795469794)
    assert (rows["8"].state, rows["8"].limit, rows["8"].signal) == ("TIMEOUT", "00:01:00", 15)
    assert (rows["12"].reason, rows["12"].start, rows["12"].nodes) == ("DependencyNeverSatisfied", None, "")
    assert (rows["21_2"].raw, rows["21_2"].name) == ("27", "array-1.k3x9q2")
    old = by_id(parse.control_text(lines("scontrol-20.11.txt")))
    assert [*old] == ["30_1", "30_2", "30_3", "30_4"]
    assert (old["30_1"].restarts, old["30_1"].nodes) == (2, "node[063-065]")
    assert (old["30_3"].reason, old["30_3"].start) == ("Resources", 1648020000)


@pytest.mark.parametrize("version", ["21.08", "23.02", "23.11", "24.05", "24.11"])
def test_squeue_as_json(version: str) -> None:
    rows = by_id(parse.queue_json((RECORDED / f"squeue-{version}.json").read_text()))
    assert {"30_1", "30_2", "30_3", "30_4", "40"} <= set(rows)
    assert (rows["30_1"].state, rows["30_1"].nodes, rows["30_1"].raw) == ("RUNNING", "node063", "31")
    assert (rows["30_4"].state, rows["30_4"].reason) == ("PENDING", "Resources")
    assert rows["30_2"].start and rows["30_2"].end is None
    assert (rows["40"].state, rows["40"].code, rows["40"].restarts) == ("FAILED", 3, 1)
    if version != "21.08":
        assert rows["41"].state == "COMPLETING"


def test_squeue_as_json_of_the_rig() -> None:
    rows = by_id(parse.queue_json((RECORDED / "squeue-22.05.json").read_text()))
    assert (rows["7"].code, rows["7"].signal) == (139, 0)
    assert rows["17"].start == 1795480593
    assert rows["21_3"].raw == "21"
    assert rows["2+1"].nodes == "node002"


@pytest.mark.parametrize("version", ["21.08", "23.02", "23.11", "24.05", "24.11"])
def test_sacct_as_json(version: str) -> None:
    rows = by_id(parse.accounting_json((RECORDED / f"sacct-{version}.json").read_text()))
    assert [*rows] == ["40", "41", "42", "50_2", "50_3"]
    assert (rows["40"].state, rows["40"].code, rows["40"].steps) == ("FAILED", 3, ("FAILED", "OUT_OF_MEMORY"))
    assert (rows["41"].by, rows["41"].signal) == ("bob", 15)
    assert rows["42"].failed_node == ("node064" if version > "23.02" else "")
    assert (rows["50_3"].start, rows["50_3"].nodes) == (None, "")


def test_sacct_as_json_of_the_rig() -> None:
    rows = {row.id: row for row in parse.accounting_json((RECORDED / "sacct-22.05.json").read_text())}
    assert (rows["9"].steps, rows["22"].by, rows["22"].state) == (
        ("FAILED", "OUT_OF_MEMORY"),
        "alice",
        "CANCELLED",
    )
    assert (rows["21_3"].state, rows["21_3"].end) == ("RUNNING", None)


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ("7", [7]),
        ("0-3", [0, 1, 2, 3]),
        ("0-3,7,10-20:5%2", [0, 1, 2, 3, 7, 10, 15, 20]),
        ("1-2,...", [1, 2]),
        ("", []),
    ],
)
def test_indices(listed: str, expected: list[int]) -> None:
    assert list(parse.indices(listed)) == expected
