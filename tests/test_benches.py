"""Benchmarks that need GPUs, tried on the CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHES = Path(__file__).parents[1] / "scripts" / "bench"


@pytest.mark.slow
def test_layouts_are_run_by_the_command_that_it_prints() -> None:
    command = [sys.executable, BENCHES / "layouts.py", "--smoke", "--rows", "lora tp2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    printed, row = done.stdout.splitlines()
    assert printed.startswith("nemorun run llama3_8b_finetune ") and printed.endswith(" --executor local")
    assert "parallelism.tensor_parallel=2" in printed
    assert row.startswith("lora tp2 ") and "apart by 0.0000" in row
