"""Every script that stands beside the Python is clean, as it is sent: behind what it needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nemorun.executors.slurm.cluster import script

FOLDER = Path(__file__).parents[3] / "executors" / "slurm"
#: Those that a node's bash reads; all others run on the login node, by a shell of POSIX.
BASH = {"job.sh": "job.sh", "session.sh": "session_rc.sh session.sh", "session_rc.sh": "session_rc.sh"}


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.sh")))
def test_shellcheck(name: str, tmp_path: Path) -> None:
    before = ["prelude.sh", "make_job_dir.sh"]
    parts = BASH[name].split() if name in BASH else [*(part for part in before if part != name), name]
    together = tmp_path / name
    together.write_text("".join(map(script, parts)))
    shell = "bash" if name in BASH else "sh"
    # SC2034, SC2153: variables that are set for what comes behind, and before; SC2016: programs of awk
    command = [
        Path(sys.executable).with_name("shellcheck"),
        f"--shell={shell}",
        "--exclude=SC2016,SC2034,SC2153",
        together,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert subprocess.run([shell, "-n", together]).returncode == 0
