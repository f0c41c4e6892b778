"""What measures and checks generation on a GPU runs without one, small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_benchmark_runs_small(tmp_path: Path) -> None:
    small = [
        "--layers",
        "1",
        "--hidden",
        "32",
        "--vocab",
        "99",
        "--prompt",
        "5",
        "--new",
        "3",
        "--batch",
        "1",
        "2",
    ]
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "scripts" / "bench" / "generate.py",
            *small,
            "--json",
            tmp_path / "found.json",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [(row["what"], row["batch"]) for row in rows] == [
        (what, batch) for what in ("nemorun", "transformers") for batch in (1, 2)
    ]
    assert all(row["tokens_per_second"] > 0 and row["floor_tokens_per_second"] > 0 for row in rows)
    assert len(done.stdout.splitlines()[-4:]) == 4 and done.stdout.splitlines()[-1].startswith("transformers")


@pytest.mark.slow
def test_the_check_finds_nothing_wrong() -> None:
    program = ROOT / "tests" / "gpu" / "generation_check.py"
    done = subprocess.run([sys.executable, program, "--cpu"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 2
