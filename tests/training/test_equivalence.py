"""Every kind of parallelism equals one rank, and the comparison notices what it must."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "equivalence"
pytestmark = pytest.mark.slow


def run(tmp_path: Path, *arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    rows = tmp_path / "rows.json"
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments, "--json", str(rows)], capture_output=True, text=True
    )
    return ended.returncode, json.loads(rows.read_text()), ended.stdout + ended.stderr


def test_each_kind_of_parallelism_equals_one_rank(tmp_path: Path) -> None:
    code, rows, output = run(tmp_path, "--fast")
    assert code == 0, output
    assert len(rows) == 26 and all(row["ok"] for row in rows), output


@pytest.mark.parametrize(
    ("bug", "row"),
    [
        ("pipeline-scale", "pp2"),
        ("hsdp-norm", "fsdp4 hsdp2"),
        ("tp-loss", "tp2"),
        ("cp-documents", "cp2 packed"),
        ("mean-of-means", "fsdp4"),
        ("expert-scale", "fsdp2 ep2 experts"),
    ],
)
def test_a_bug_that_others_have_met_is_noticed(tmp_path: Path, bug: str, row: str) -> None:
    code, rows, output = run(tmp_path, row, "--small", "--plant", bug)
    assert code == 1 and [r["ok"] for r in rows] == [False], output


def test_a_row_that_is_not_there_is_named() -> None:
    ended = subprocess.run([sys.executable, str(SCRIPT), "tp3"], capture_output=True, text=True)
    assert ended.returncode == 1 and "no row is called tp3" in ended.stderr
