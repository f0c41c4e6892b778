"""The comparison of losses in float8 and bfloat16 runs anywhere, in small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench" / "loss_curve.py"


@pytest.mark.slow
def test_both_curves_are_there_and_differ_a_little(tmp_path: Path) -> None:
    small = ["--layers", "1", "--width", "64", "--length", "32", "--batch", "2", "--steps", "3"]
    curves = tmp_path / "curves.json"
    ended = subprocess.run(
        [
            sys.executable,
            str(SCRIPT),
            *small,
            "--accelerator",
            "cpu",
            "--json",
            str(curves),
        ],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    losses = json.loads(curves.read_text())["losses"]
    bf16, fp8 = losses["bf16-mixed"], losses["fp8-mixed"]
    assert len(bf16) == len(fp8) == 3 and fp8 != bf16 and fp8 == pytest.approx(bf16, abs=0.05)
    assert "largest difference" in ended.stdout and "mean of the last 1 steps" in ended.stdout
