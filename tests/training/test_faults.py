"""A fine-tuning run that is killed at random moments learns what it would have learned."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "training-faults"


@pytest.mark.slow
def test_killed_at_random_moments_and_on_fewer_ranks() -> None:
    ended = subprocess.run([sys.executable, str(SCRIPT), "--kills", "2"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "2 kills, 3 starts: losses, norms and validation equal" in ended.stdout
