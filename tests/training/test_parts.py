"""The parts of training, each by itself: rates, loss, settings, the safe reader, the log of metrics."""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nemorun.config import Partial, dumps, loads
from nemorun.errors import ConfigError
from nemorun.llm import DataConfig, GPTConfig, GPTModel, pretrain
from nemorun.training import (
    CheckpointConfig,
    LogConfig,
    OptimConfig,
    ParallelismConfig,
    Trainer,
    TrainerConfig,
    TrainingError,
)
from nemorun.training.batch import Batch
from nemorun.training.checkpoint import complete, damage
from nemorun.training.loss import IGNORE, linear_cross_entropy_sum
from nemorun.training.metrics import Metrics
from nemorun.training.optim import build_optimizer, learning_rate


def test_the_rate_warms_up_and_follows_its_schedule() -> None:
    config = OptimConfig(lr=1.0, min_lr=0.2, warmup_steps=10)
    assert [learning_rate(step, config, 110) for step in (1, 5, 10)] == [0.1, 0.5, 1.0]
    assert learning_rate(60, config, 110) == pytest.approx(0.6)
    assert learning_rate(110, config, 110) == pytest.approx(0.2)
    assert learning_rate(500, config, 110) == pytest.approx(0.2)
    assert learning_rate(500, OptimConfig(lr=1.0, schedule="constant", warmup_steps=0), 110) == 1.0


def test_the_loss_sums_valid_tokens_and_is_zero_without_any() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 3, 4, generator=generator), torch.randn(5, 4, generator=generator)
    labels = torch.tensor([[1, IGNORE, 2], [IGNORE, IGNORE, IGNORE]])
    log_p = (x @ weight.T).log_softmax(-1)
    expected = pytest.approx(float(-log_p[0, 0, 1] - log_p[0, 2, 2]))
    assert linear_cross_entropy_sum(x, weight, labels) == expected
    assert linear_cross_entropy_sum(x, weight, torch.full((2, 3), IGNORE)) == 0


def test_a_likely_label_has_an_exact_gradient_in_bfloat16() -> None:
    x, weight = torch.tensor([[1.0]]).bfloat16().requires_grad_(), torch.tensor([[8.0], [0.0]]).bfloat16()
    linear_cross_entropy_sum(x, weight, torch.tensor([0])).backward()
    share = 1 / (1 + math.exp(-8))  # 0.99966, which bfloat16 cannot tell from 1
    assert x.grad is not None
    assert float(x.grad) == pytest.approx(8 * (share - 1), rel=0.01)


def a_head() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Its input [2, 5, 4], its weight [7, 4] and the labels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 4, generator=generator, requires_grad=True)
    weight = torch.randn(7, 4, generator=generator, requires_grad=True)
    return x, weight, torch.randint(0, 7, (2, 5), generator=generator)


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_the_loss_in_pieces_has_the_gradients_of_the_whole(rows: int) -> None:
    x, weight, labels = a_head()
    labels[0, ::2] = IGNORE
    expected = torch.nn.functional.cross_entropy(
        (x @ weight.T).flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    found = linear_cross_entropy_sum(x, weight, labels, rows=rows)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        torch.autograd.grad(found * 3, (x, weight)),
        torch.autograd.grad(expected * 3, (x, weight)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_the_heads_gradient_is_added_to_a_sum(rows: int) -> None:
    x, weight, labels = a_head()
    of_x, of_weight = torch.autograd.grad(linear_cross_entropy_sum(x, weight, labels) * 0.5, (x, weight))
    total = torch.ones(7, 4)
    (linear_cross_entropy_sum(x, weight, labels, rows=rows, total=total, scale=0.5) * 0.5).backward()
    torch.testing.assert_close(total, 1 + of_weight)
    torch.testing.assert_close(x.grad, of_x)
    assert weight.grad is None
    with torch.no_grad():  # of a validation
        linear_cross_entropy_sum(x, weight, labels, rows=rows, total=total)
    torch.testing.assert_close(total, 1 + of_weight)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TrainerConfig(max_steps=0), "max_steps=0 must be at least 1"),
        (OptimConfig(lr=0.0), "lr=0.0 must be greater than 0"),
        (OptimConfig(min_lr=1.0), "min_lr=1.0 must be between 0 and lr=0.0003"),
        (OptimConfig(betas=(0.9, 1.0)), "betas"),
        (ParallelismConfig(tensor_parallel=0), "tensor_parallel=0 must be at least 1"),
        (ParallelismConfig(virtual_pipeline=2), "virtual_pipeline=2 needs pipeline_parallel > 1"),
        (ParallelismConfig(sequence_parallel=True), "sequence_parallel=True needs tensor_parallel > 1"),
        (ParallelismConfig(async_tensor_parallel=True), "async_tensor_parallel=True needs"),
        (
            ParallelismConfig(pipeline_parallel=2, virtual_pipeline=2, pipeline_schedule="1f1b"),
            "pipeline_schedule=1f1b has one piece a rank",
        ),
        (TrainerConfig(hang_timeout=0.0), "hang_timeout=0.0 must be greater than 0"),
        (DataConfig(global_batch_size=3, micro_batch_size=2), "is not divisible by micro_batch_size=2"),
        (DataConfig(val_fraction=1.0), "val_fraction=1.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(config: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.validate()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parallelism": ParallelismConfig(data_parallel=4)}, "trainer.devices=2 = 2 ranks, and"),
        (
            {"data": DataConfig(global_batch_size=3)},
            "not divisible by data.micro_batch_size=1 x 2 data-parallel",
        ),
        (
            {"parallelism": ParallelismConfig(tensor_parallel=4)},
            "2 ranks cannot be divided by tensor_parallel=4 x pipeline_parallel=1 x context_parallel=1 = 4",
        ),
        (
            {"parallelism": ParallelismConfig(pipeline_parallel=2), "data": DataConfig(global_batch_size=3)},
            "= 3 micro-batches, which must be a multiple of pipeline_parallel=2",
        ),
        ({"parallelism": ParallelismConfig(replicate=3)}, "replicate=3 does not divide 2 data-parallel"),
        (
            {"parallelism": ParallelismConfig(expert_parallel=4), "model": GPTConfig(num_experts=4)},
            "expert_parallel=4 does not divide the 2 ranks",
        ),
        ({"model": GPTConfig(vocab_size=100)}, "must be at least 257"),
        ({"data": DataConfig(seq_length=9000)}, "longer than model.seq_length=8192"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused_at_submission(
    settings: dict[str, Any], message: str
) -> None:
    fitting = {
        "model": GPTConfig(),
        "trainer": TrainerConfig(devices=2),
        "data": DataConfig(),
        "parallelism": ParallelismConfig(),
    }
    with pytest.raises(ConfigError, match=message):
        pretrain.__nemorun_resources__(**fitting | settings)


def test_the_executor_is_asked_for_ranks_and_for_gpus_where_they_are_wanted() -> None:
    def asked(accelerator: str) -> tuple[int, int, int]:
        trainer = TrainerConfig(num_nodes=2, devices=4, accelerator=accelerator)
        found = pretrain.__nemorun_resources__(GPTConfig(), trainer, DataConfig(), ParallelismConfig())
        return found.nodes, found.ntasks_per_node, found.gpus_per_node

    assert asked("gpu") == (2, 4, 4)
    assert asked("auto") == asked("cpu") == (2, 4, 0)


def test_a_seed_that_was_set_for_the_run_counts_where_the_recipe_names_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = dumps(
        Partial(pretrain, model=GPTConfig(), trainer=TrainerConfig(max_steps=1), data=DataConfig(seed=3))
    )
    monkeypatch.setenv("NEMORUN_SEED", "7")  # as the task finds it after `run.set_seed(7)`
    task = loads(written)
    assert (task.trainer.build().seed, task.data.build().seed) == (7, 3)


def test_ranks_that_were_not_started_are_missed() -> None:
    with pytest.raises(TrainingError, match=r"trainer.devices=2 are 2 ranks, but WORLD_SIZE is 1"):
        pretrain(GPTConfig(), TrainerConfig(devices=2))


def test_metrics_go_to_tensorboard_unless_that_is_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def events(folder: str, wanted: bool | None) -> list[Path]:
        metrics = Metrics(LogConfig(dir=tmp_path / folder, tensorboard=wanted), step=0)
        metrics.write(1, loss=2.0)
        metrics.close()
        assert json.loads((tmp_path / folder / "metrics.jsonl").read_text()) == {"step": 1, "loss": 2.0}
        return list((tmp_path / folder).glob("tensorboard/events.*"))

    assert events("on", None)
    assert not events("asked-not", False)
    monkeypatch.setenv("NEMORUN_TENSORBOARD", "0")
    assert not events("off", None)
    assert events("asked", True)


def test_without_tensorboard_there_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # what Python does where it is missing
    Metrics(LogConfig(dir=tmp_path), step=0).close()
    assert capsys.readouterr().out.count("tensorboard is not installed") == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [("{", "is not JSON"), ("[]", "must be a JSON object"), ('{"project": "p"}', "wandb is not installed")],
)
def test_what_is_wrong_with_wandb_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setenv("NEMORUN_WANDB", value)
    with pytest.raises(TrainingError, match=message):
        Metrics(LogConfig(dir=tmp_path, tensorboard=False), step=0)


def test_configurations_and_recipes_import_no_torch() -> None:
    code = (
        "import sys, nemorun.llm, nemorun.training, nemorun.recipes;"
        "from nemorun.llm import pretrain; nemorun.recipes.tiny_llama_pretrain();"
        "print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_a_full_disk_costs_the_metrics_and_not_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = Metrics(LogConfig(dir=tmp_path, tensorboard=False), step=0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        metrics.write(1, loss=2.0)
        metrics.write(2, loss=2.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    metrics.write(3, loss=1.0)
    metrics.close()
    assert capsys.readouterr().out.count("warning: metrics are not written") == 1
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 3, "loss": 1.0}


def test_only_matrices_decay() -> None:
    model = GPTModel(GPTConfig(hidden_size=16, num_layers=1, num_attention_heads=2, vocab_size=257))
    decayed, others = build_optimizer([model], OptimConfig(weight_decay=0.3)).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert all(names[p].endswith("norm.weight") for p in others["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(names) and len(others["params"]) == 3


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, float]]:
    """Trains a tiny model in this process up to a step; `model` changes its shape."""
    monkeypatch.setenv("NEMORUN_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("a text of a few words " * 20)

    def run(steps: int, folder: str = "results", interval: int = 1000, **model: int) -> dict[str, float]:
        shape = {"hidden_size": 16, "num_layers": 2, "num_attention_heads": 2, "seq_length": 8}
        return pretrain(
            GPTConfig(**{**shape, "vocab_size": 257, **model}),
            TrainerConfig(
                max_steps=steps, log_interval=100, val_interval=3, accelerator="cpu", precision="auto"
            ),
            DataConfig(path=tmp_path / "text.txt", global_batch_size=2),
            checkpoint=CheckpointConfig(interval=interval),
            log=LogConfig(dir=tmp_path / folder, tensorboard=False),
            sample=None,
        )

    return run


def test_a_checkpoint_of_another_model_is_refused_by_the_name_of_what_differs(
    run: Callable[..., dict[str, float]], tmp_path: Path
) -> None:
    run(2)
    assert run(4)["step"] == 4  # on the way it validates before the first line of its log
    written = (tmp_path / "results" / "metrics.jsonl").read_text()
    assert set(run(4)) == {"step", "val_loss"}
    assert (tmp_path / "results" / "metrics.jsonl").read_text() == written  # nothing twice
    with pytest.raises(TrainingError, match=r"embedding.weight is \(257, 16\) there and \(257, 32\) here"):
        run(6, hidden_size=32)
    for layers, name in ((1, "blocks.1"), (3, "blocks.2")):
        with pytest.raises(
            TrainingError, match=rf"is of another model: {name}\..*missing.*use another folder"
        ):
            run(6, num_layers=layers)


def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_taken(
    run: Callable[..., dict[str, float]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(6, folder="whole", interval=2)
    run(6, interval=2)
    folder = tmp_path / "results" / "checkpoints"
    os.truncate(folder / "step-00000006" / "rank-00000.0.safetensors", 1000)
    (folder / "step-00000004" / "state.json").write_text("{")
    capsys.readouterr()
    again = run(6, interval=2)
    output = capsys.readouterr().out
    assert "warning: checkpoint" in output and "has 1,000 bytes instead of" in output
    assert "goes on from step 2" in output
    assert (again["loss"], again["val_loss"]) == (whole["loss"], whole["val_loss"])
    assert [damage(path) for path in complete(folder)] == [None] * 3
    for path in complete(folder):
        (path / "index.json").unlink()
    with pytest.raises(TrainingError, match=r"every checkpoint in .* is damaged"):
        run(6)


def test_results_that_cannot_be_written_are_a_sentence(
    run: Callable[..., dict[str, float]], tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"the results' folder .*text.txt/x cannot be written: "):
        run(1, folder="text.txt/x")


def test_padding_changes_nothing_in_training_experts(tmp_path: Path) -> None:
    """Longer rows, the rest of which is padding: the same loss and the same weights."""

    def train(name: str, more: int, marked: bool = True) -> dict[str, torch.Tensor]:
        tokens = torch.full((4, 8 + more), 5)
        labels = torch.full_like(tokens, IGNORE)
        tokens[:, :8] = torch.randint(0, 32, (4, 8), generator=torch.Generator().manual_seed(1))
        labels[:, :8] = tokens[:, :8] * 7 % 32
        padding = (torch.arange(8 + more) >= 8).expand(4, -1) if marked else None
        shape = {"hidden_size": 16, "num_layers": 2, "num_attention_heads": 2, "vocab_size": 32}
        model = GPTModel(GPTConfig(**shape, seq_length=64, num_experts=4, aux_loss_coeff=1.0))
        log = LogConfig(dir=tmp_path / name, tensorboard=False)
        optim = OptimConfig(lr=1e-2, warmup_steps=0, schedule="constant")
        trainer = Trainer(max_steps=3, accelerator="cpu", precision="fp32", optim=optim, log=log)
        trainer.fit(model, [Batch(tokens, labels, padding=padding)])
        return dict(model.state_dict())

    short, long, unmarked = train("short", 0), train("long", 24), train("unmarked", 24, marked=False)
    torch.testing.assert_close(long, short, rtol=1e-5, atol=1e-6)
    assert any(not torch.allclose(unmarked[name], short[name], rtol=1e-3, atol=1e-4) for name in short)
