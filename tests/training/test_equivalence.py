"""Every kind of parallelism equals one rank, and the comparison notices what it must."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "equivalence"
pytestmark = pytest.mark.slow(minutes=2)


def test_each_kind_of_parallelism_equals_one_rank_and_bugs_are_noticed(tmp_path: Path) -> None:
    found = tmp_path / "rows.json"
    command = [sys.executable, str(SCRIPT), "--fast", "--plant", "--json", str(found)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = json.loads(found.read_text())
    assert all(row["ok"] for row in rows)
    planted = [row["name"] for row in rows if ":" in row["name"]]
    assert len(planted) == 6 and len(rows) == 29 + 5 + 6


def test_a_row_that_is_not_there_is_named() -> None:
    ended = subprocess.run([sys.executable, str(SCRIPT), "tp3"], capture_output=True, text=True)
    assert ended.returncode == 1 and "no row is called tp3" in ended.stderr
