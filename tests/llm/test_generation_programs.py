"""What measures and checks generation on a GPU runs without one, small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_benchmark_runs_small(tmp_path: Path) -> None:
    small = ["--layers=1", "--hidden=32", "--vocab=99", "--prompt=5", "--new=3", "--batch", "1", "2"]
    program, found = ROOT / "scripts" / "bench" / "generate.py", tmp_path / "found.json"
    done = subprocess.run([sys.executable, program, *small, "--json", found], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(found.read_text())["rows"]
    assert [(row["what"], row["batch"]) for row in rows] == [
        (what, batch) for what in ("nemorun", "transformers") for batch in (1, 2)
    ]
    # of times so short nothing is to be expected, not even the sign of their difference
    assert all(row.keys() >= {"tokens_per_second", "floor_tokens_per_second"} for row in rows)
    assert len(done.stdout.splitlines()[-4:]) == 4 and done.stdout.splitlines()[-1].startswith("transformers")


@pytest.mark.slow
def test_the_check_finds_nothing_wrong() -> None:
    program = ROOT / "tests" / "gpu" / "generation_check.py"
    done = subprocess.run([sys.executable, program, "--cpu"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 2
