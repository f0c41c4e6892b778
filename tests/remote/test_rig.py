"""The rig itself: what it says where it cannot run, and that its jobs run."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.slurm_rig import SLURM_RIG, Rig


def test_wrong_usage_has_an_exit_code_of_its_own() -> None:
    done = subprocess.run([SLURM_RIG, "upp"], text=True, capture_output=True)
    assert (done.returncode, done.stdout) == (64, "")
    assert "invalid choice: 'upp'" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="it is about leaving root")
def test_without_root_it_says_so_in_a_line() -> None:
    # Read by root, run as nobody: the checkout need not be readable for others.
    code = "import os, sys; source = open(sys.argv[1]).read(); sys.path.insert(0, sys.argv[2])\n"
    code += (
        "program = compile(source, sys.argv[1], 'exec'); sys.argv[1:] = ['up']; import rig.state, rig.wan\n"
    )
    code += "import rig.network, rig.power; os.setuid(65534); exec(program, {'__name__': '__main__'})"
    words = ["/usr/bin/python3", "-c", code, SLURM_RIG, SLURM_RIG.parent]
    done = subprocess.run(words, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (2, "slurm-rig: run me as root\n")


def test_a_job_runs(rig: Rig) -> None:
    words = ["ssh", "-F", rig.config, "login", "srun -N2 -n2 hostname"]
    done = subprocess.run(words, text=True, capture_output=True)
    assert sorted(done.stdout.split()) == ["node001", "node002"], done.stderr


def test_up_again_changes_nothing(rig: Rig) -> None:
    assert rig("up").startswith("up: ")
    assert "not running" not in rig("status")
