"""What a user sees of jobs on a cluster: `nemorun` itself, on the rig."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nemorun.cli.main import invoke
from tests.slurm_rig import Rig, eventually

Nemorun = Callable[..., str]


@pytest.fixture
def nemorun(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Nemorun]:
    """Runs a command line that must succeed, in a workspace with the executor `rig`; its standard output."""
    job_dir = rig.home_of("alice") / f"nr-{tmp_path.name}"
    (tmp_path / "nemorun.yaml").write_text(
        f"executors:\n  rig: {{type: slurm, tunnel: login, ssh_config: {rig.config},"
        f" job_dir: ~/{job_dir.name}, mem: 100, time: 5}}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEMORUN_HOME", str(tmp_path / "home"))

    def run(*words: str, code: int = 0) -> str:
        capfd.readouterr()
        ended = invoke(words)
        out, err = capfd.readouterr()
        assert ended == code, err
        return out + err

    yield run
    shutil.rmtree(job_dir, ignore_errors=True)  # a rank that is being cancelled may still write


def test_status_says_where_the_results_are(nemorun: Nemorun, rig: Rig) -> None:
    nemorun("run", "-e", "rig", "--", "sh", "-c", "echo 7 > $NEMORUN_RESULTS_DIR/answer")
    (task,) = json.loads(nemorun("status", "--json"))["tasks"]
    host, _, folder = task["remote_dir"].partition(":/home/alice/")  # for scp, which knows no variables
    assert (host, (rig.home_of("alice") / folder / "results/answer").read_text()) == ("login", "7\n")
    assert f"there: login:/home/alice/{folder.partition('/tasks/')[0]}\n" in nemorun("status")


def test_an_element_that_waits_is_cancelled_at_once_and_for_good(nemorun: Nemorun, rig: Rig) -> None:
    (Path.cwd() / "jobs.py").write_text("import time\ndef wait(n: int): time.sleep(60)\n")
    held = "executor.sbatch_args=[--hold]"
    nemorun("run", "jobs.py:wait", "--sweep", "n=1,2,3", "-e", "rig", held, "--detach")
    (job,) = {task["handle"].partition("_")[0] for task in json.loads(nemorun("status", "--json"))["tasks"]}
    # from here on accounting says for some seconds that it waits, cancelled or not
    eventually(lambda: job in rig("exec", "ctl", "sacct", "--noheader", "--format=jobid", f"--jobs={job}"))
    assert "CANCELLED" in nemorun("cancel", "-1", "--task", "n-2", "--yes")
    tasks = json.loads(nemorun("status", "--json"))["tasks"]
    assert [task["state"] for task in tasks] == ["PENDING", "CANCELLED", "PENDING"]
    assert "CANCELLED" in nemorun("cancel", "-1", "--yes")
