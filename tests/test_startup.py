"""Start-up is a feature: what a command does not need, it does not import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TRAINING = {"torch", "numpy", "tensorboard"}
CLUSTERS = {"kubernetes", "fabric", "paramiko"}
CASES = {
    "import nemorun": (["-c", "import nemorun"], TRAINING | CLUSTERS | {"pydantic", "rich", "typer", "yaml"}),
    "nemorun --help": (
        ["-m", "nemorun", "--help"],
        TRAINING | CLUSTERS | {"pydantic", "yaml", "sqlite3", "nemorun.executors.base"},
    ),
    "nemorun run --dry-run": (
        ["-m", "nemorun", "run", "tiny_llama_pretrain", "--dry-run"],
        TRAINING | CLUSTERS,
    ),
    "nemorun run --smoke --dry-run": (
        ["-m", "nemorun", "run", "llama3_8b_finetune", "--smoke", "--dry-run"],
        TRAINING | CLUSTERS,
    ),
    "nemorun run -e slurm --dry-run": (
        ["-m", "nemorun", "run", "-e", "slurm", "--dry-run", "--", "hostname"],
        TRAINING | CLUSTERS,
    ),
}


def imported(argv: list[str], cwd: Path) -> set[str]:
    """Every module that `python argv` imported, from the report on stderr, and their top-level names."""
    command = [sys.executable, "-X", "importtime", *argv]
    done = subprocess.run(command, cwd=cwd, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    report = [line.split("|") for line in done.stderr.splitlines() if line.startswith("import time:")]
    names = {columns[-1].strip() for columns in report}
    return names | {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("case", CASES)
def test_heavy_modules_stay_out(case: str, tmp_path: Path) -> None:
    argv, unwanted = CASES[case]
    modules = imported(argv, tmp_path)
    assert "nemorun" in modules
    assert not modules & unwanted


def test_the_report_would_show_them(tmp_path: Path) -> None:
    assert "pydantic" in imported(["-c", "import pydantic"], tmp_path)
