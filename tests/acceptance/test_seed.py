"""The snippets of the design document this project grew from, with only the import line changed."""

import subprocess
import sys
import textwrap
from pathlib import Path

PREAMBLE = """
    import nemorun as run
    from nemorun.llm import DataConfig, GPTConfig
    from nemorun.training import TrainerConfig

    def train(model: GPTConfig, trainer: TrainerConfig, data: DataConfig):
        print(f"hidden={model.hidden_size} steps={trainer.max_steps} path={data.path}")
        return trainer.max_steps
"""


def run_script(folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    script = folder / "snippet.py"
    script.write_text(textwrap.dedent(PREAMBLE) + textwrap.dedent(body))
    return subprocess.run(
        [sys.executable, str(script)], cwd=folder, capture_output=True, text=True, timeout=120
    )


def test_basic_usage(tmp_path: Path) -> None:
    done = run_script(
        tmp_path,
        """
        # Define experiment
        @run.cli.factory
        def my_experiment():
            return run.Partial(
                train,
                model=GPTConfig(hidden_size=4096),
                trainer=TrainerConfig(max_steps=10000),
                data=DataConfig(path="/data/train.jsonl")
            )

        # Run locally
        run.run(my_experiment(), executor=run.LocalExecutor())
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("hidden=4096 steps=10000 path=/data/train.jsonl") == 1, done.stdout


def test_experiment_tracking(tmp_path: Path) -> None:
    done = run_script(
        tmp_path,
        f"""
        import os
        from pathlib import Path

        def work():
            assert os.environ["NEMORUN_TENSORBOARD"] == "1"
            Path(os.environ["NEMORUN_RESULTS_DIR"], "seen").write_text("yes")

        training_task = run.Partial(work)
        local = run.LocalExecutor()

        # Configure logging
        experiment = run.Experiment(
            name="llama-finetune",
            log_dir="{tmp_path}/results/experiments",
            tensorboard=True,
        )

        # Run with tracking
        with experiment:
            run.run(training_task, executor=local)
        """,
    )
    assert done.returncode == 0, done.stderr
    assert [p.read_text() for p in (tmp_path / "results/experiments").rglob("seen")] == ["yes"]


def test_configuration_management(tmp_path: Path) -> None:
    body = """
        # Use dataclasses for type safety
        from dataclasses import dataclass

        @dataclass
        class ExperimentConfig:
            model: GPTConfig
            trainer: TrainerConfig
            data: DataConfig

            def validate(self):
                assert self.model.hidden_size % self.model.num_attention_heads == 0
                assert self.trainer.max_steps > 0

        def work(config: ExperimentConfig):
            print("worked on", config.model.hidden_size)

        model = GPTConfig(hidden_size=HIDDEN)
        config = ExperimentConfig(model, TrainerConfig(max_steps=STEPS), DataConfig(path="/d"))
        run.run(run.Partial(work, config=config), executor=run.LocalExecutor())
        """
    good = run_script(tmp_path, body.replace("HIDDEN", "4096").replace("STEPS", "5"))
    assert good.returncode == 0, good.stderr
    assert "worked on 4096" in good.stdout
    bad = run_script(tmp_path, body.replace("HIDDEN", "4096").replace("STEPS", "0"))
    assert bad.returncode != 0
    assert "worked on" not in bad.stdout
    assert "max_steps" in bad.stderr


def test_reproducibility(tmp_path: Path) -> None:
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x", "--allow-empty"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout.strip()
    done = run_script(
        tmp_path,
        """
        import random
        config = {"lr": 0.1}

        def draw():
            return random.random()

        # Pin versions
        run.set_seed(42)

        # Log configuration
        experiment = run.Experiment(
            name="experiment-v1",
            config=config,
            git_commit=run.get_git_commit()
        )
        with experiment:
            run.run(run.Partial(draw), executor=run.LocalExecutor(), name="a")
            run.run(run.Partial(draw), executor=run.LocalExecutor(), name="b")
        again = run.Experiment.from_name("experiment-v1")
        print("commit", run.get_git_commit())
        """,
    )
    assert done.returncode == 0, done.stderr
    assert f"commit {commit}" in done.stdout
    home = Path(__import__("os").environ["NEMORUN_HOME"])
    draws = {p.read_text().strip() for p in home.rglob("result.json")}
    assert len(draws) == 1, draws  # both tasks drew the seed's first number
    record = next(home.rglob("experiment.yaml")).read_text()
    assert commit in record and "42" in record and "lr" in record
