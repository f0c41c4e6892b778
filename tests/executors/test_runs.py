"""What a rank finds when it runs: interpreter, environment, folders, code; and how its output is read."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from nemorun.job import JobState, Reason, Resources

from .conftest import Bench, alive, text_in, wait_until

SHOW = "import json, os; print(json.dumps(dict(os.environ)))"


def environment(bench: Bench, rank: int = 0) -> dict[str, str]:
    found: dict[str, str] = json.loads(bench.log(rank=rank))
    return found


def test_a_plain_task_is_one_process_without_ranks(bench: Bench) -> None:
    status = bench.run(SHOW)
    assert (status.state, status.reason, status.exit_code, status.attempt) == (
        JobState.SUCCEEDED, Reason.NONE, 0, 1,
    )  # fmt: skip
    assert status.started_at and status.ended_at and status.started_at <= status.ended_at
    env = environment(bench)
    assert "RANK" not in env and "MASTER_ADDR" not in env and "NEMORUN_LIFELINE" not in env
    assert env["NEMORUN_EXPERIMENT"] == bench.id and env["NEMORUN_TASK"] == "task"
    assert env["NEMORUN_RUN_DIR"] == bench.ref().run_dir and env["NEMORUN_ATTEMPT"] == "1"
    assert Path(env["NEMORUN_RESULTS_DIR"]).is_dir()


def test_ranks_have_what_torchrun_would_give_them(bench: Bench) -> None:
    bench.run(SHOW, resources=Resources(nodes=2, ntasks_per_node=2))
    envs = [environment(bench, rank) for rank in range(4)]
    per_rank = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")
    assert [[env[name] for name in per_rank] for env in envs] == [
        ["0", "0", "0", "0", "2", "2"],
        ["1", "1", "0", "0", "2", "2"],
        ["2", "0", "1", "1", "2", "2"],
        ["3", "1", "1", "1", "2", "2"],
    ]
    for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "OMP_NUM_THREADS"):
        assert len({env[name] for env in envs}) == 1
    assert envs[0]["WORLD_SIZE"] == "4" and int(envs[0]["MASTER_PORT"]) > 1023
    assert envs[0]["TORCHELASTIC_RESTART_COUNT"] == "0"


def test_odd_values_reach_the_rank_as_they_are(make_bench: Callable[..., Bench]) -> None:
    odd = {
        "SPACES": "  a b ",
        "QUOTES": """it's "so" `x`""",
        "NEWLINE": "one\ntwo\n",
        "DOLLAR": "${HOME} $(id) $$",
        "COMMAS": "1,2,,3",
        "UNICODE": "größe ☃ \udcff",
        "EMPTY": "",
        "lower_Case": "kept",
    }
    bench = make_bench(env_vars=odd)
    bench.run(SHOW)
    env = environment(bench)
    assert {name: env[name] for name in odd} == odd


def test_what_surrounds_the_launcher_does_not_leak(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_CPU_BIND", "SBATCH_PARTITION", "PMI_RANK", "RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "7")
    for name in ("MASTER_PORT", "LOCAL_RANK", "TORCHELASTIC_RUN_ID", "NEMORUN_SEED", "NEMORUN_TOKEN"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("KEPT", "yes")
    bench.run(SHOW)
    env = environment(bench)
    assert env["KEPT"] == "yes" and env["NEMORUN_HOME"] == os.environ["NEMORUN_HOME"]
    assert [name for name, value in env.items() if value == "7"] == []


def test_the_users_own_settings_win(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(
        env_vars={"OMP_NUM_THREADS": "3", "MASTER_PORT": "23456", "SLURM_WANTED": "1", "A": "old"}
    )
    bench.run(SHOW, resources=Resources(ntasks_per_node=2), env={"A": "new", "NEMORUN_SEED": "5"})
    env = environment(bench)
    wanted = {
        "OMP_NUM_THREADS": "3",
        "MASTER_PORT": "23456",
        "SLURM_WANTED": "1",
        "A": "new",
        "NEMORUN_SEED": "5",
    }
    assert {name: env[name] for name in wanted} == wanted


def test_the_interpreter_is_the_launchers_own(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even with another python first on PATH, for functions as for the supervisor."""
    bin_folder = bench.path("bin")
    bin_folder.mkdir()
    for name in ("python", "python3"):
        (bin_folder / name).write_text("#!/bin/sh\nexit 99\n")
        (bin_folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    (bench.path("which.py")).write_text("import sys\ndef which(): return sys.executable\n")
    status = bench.run(yaml=f"_target_: script:{bench.path('which.py')}:which\n_partial_: true\n")
    assert status.state == JobState.SUCCEEDED
    assert json.loads((Path(bench.ref().run_dir) / "result.json").read_text()) == sys.executable


def test_modules_in_the_folder_it_starts_in_shadow_nothing(bench: Bench) -> None:
    for name in ("json", "yaml", "threading", "nemorun", "signal"):
        bench.path(f"{name}.py").write_text("raise SystemExit(55)\n")
    assert bench.run(yaml="_target_: os.getpid\n_partial_: true\n").state == JobState.SUCCEEDED


def test_secrets_reach_their_task_and_stand_nowhere(bench: Bench) -> None:
    secret = "s3cr3t-\N{SNOWMAN}-value"
    digest = hashlib.sha256(secret.encode()).hexdigest()
    check = (
        "import hashlib, os, pathlib, time\n"
        "found = hashlib.sha256(os.environ.get('API_KEY', '').encode()).hexdigest()\n"
        "pathlib.Path(os.environ['NEMORUN_TASK']).write_text(found + '\\n')\n"
        "while not pathlib.Path('go').exists(): time.sleep(0.01)\n"
    )
    bench.executor.max_parallel = 2
    bench.add("with", python=check, secrets=("API_KEY",))
    bench.add("without", python=check)
    bench.submit({"API_KEY": secret})
    assert text_in(bench.path("with")) == digest
    assert text_in(bench.path("without")) == hashlib.sha256(b"").hexdigest()
    pids = [bench.supervisor(), *bench.processes()]
    assert len(pids) >= 3
    for pid in pids:
        assert secret.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    bench.path("go").touch()
    bench.wait()
    for path in [*bench.folder.rglob("*"), *Path(os.environ["NEMORUN_HOME"]).rglob("*")]:
        assert path.is_dir() or secret.encode() not in path.read_bytes(), path


def test_files_are_private(bench: Bench) -> None:
    bench.run("print(1)")
    local = bench.folder / "local"
    assert local.stat().st_mode & 0o077 == 0
    logs = list((Path(bench.ref().run_dir) / "logs").rglob("*"))
    for path in [*local.iterdir(), *logs]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_frozen_code_runs_instead_of_the_folders(bench: Bench) -> None:
    """Imports and the script of a command come from the archive, though both were changed since."""
    root = bench.path("work")
    (root / "sub").mkdir(parents=True)
    (root / "helper.py").write_text("VALUE = 'frozen'\n")
    (root / "sub" / "main.py").write_text(
        "import helper, sys; print('main frozen', helper.VALUE, sys.argv[1:])\n"
    )
    archive = bench.path("0123.tar.gz")
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("helper.py", "sub/main.py"):
            tar.add(root / name, name)
    (root / "helper.py").write_text("VALUE = 'changed'\n")
    (root / "sub" / "main.py").write_text("print('main changed')\n")
    status = bench.run(
        command=(sys.executable, "main.py", "main.txt"), code_root=str(root), cwd=str(root / "sub"),
        code=str(archive),
    )  # fmt: skip
    assert status.state == JobState.SUCCEEDED, bench.log()
    assert bench.log() == "main frozen frozen ['main.txt']\n"


def test_logs_go_on_where_the_reader_stopped(bench: Bench) -> None:
    code = (
        "import pathlib, time\nprint('one')\nprint('half', end='')\n"
        "while not pathlib.Path('go').exists(): time.sleep(0.01)\nprint(' done')\nprint('tail', end='')\n"
    )
    ref = bench.add(python=code)
    bench.submit()
    (first,) = wait_until(lambda: bench.chunks(ref))
    assert (first.text, first.rank, first.attempt, first.offset) == ("one\n", 0, 1, 4)
    offsets = {(1, 0): first.offset}
    assert bench.chunks(ref, offsets) == []  # half a line is not shown yet
    bench.path("go").touch()
    bench.wait()
    (rest,) = bench.chunks(ref, offsets)
    assert rest.text == "half done\ntail"
    assert bench.chunks(ref, {(1, 0): rest.offset}) == []


def test_a_log_larger_than_one_read_arrives_whole(bench: Bench) -> None:
    bench.run("print('x' * 1_500_000); print('é' * 700_000); print('end')")
    chunks = bench.chunks()
    assert len(chunks) > 1
    assert chunks[-1].text.endswith("end\n")
    assert chunks[-1].offset == 1_500_001 + 1_400_001 + 4


def test_many_independent_tasks_and_a_graph(bench: Bench) -> None:
    """A dependent starts after what it depends on has ended well."""
    for number in range(6):
        needs = (f"t{number - 1}", f"t{number - 2}") if number > 1 else ()
        checks = "".join(f"assert pathlib.Path('{name}').exists()\n" for name in needs)
        code = f"import pathlib\n{checks}pathlib.Path('t{number}').touch()\n"
        bench.add(f"t{number}", python=code, dependencies=needs)
    bench.submit()
    assert {status.state for status in bench.wait().values()} == {JobState.SUCCEEDED}


def test_max_parallel_bounds_what_runs_at_once(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(max_parallel=1)
    code = "import os, sys\ntry: os.mkdir('alone')\nexcept FileExistsError: sys.exit(1)\nos.rmdir('alone')\n"
    for number in range(4):
        bench.add(f"t{number}", python=code)
    bench.submit()
    assert {status.state for status in bench.wait().values()} == {JobState.SUCCEEDED}


def test_the_supervisor_outlives_its_launcher(bench: Bench) -> None:
    """Neither the launcher's end nor its terminal's touches the run."""
    bench.add(python="import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)\n")
    bench.submit()
    supervisor = bench.supervisor()
    assert os.getsid(supervisor) == supervisor
    bench.path("go").touch()
    bench.wait()
    wait_until(lambda: bench.status() and not alive(supervisor))
