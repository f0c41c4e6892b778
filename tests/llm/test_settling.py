"""What is chosen where nothing is given: as large a micro-batch, and as much kept, as is of use and fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemorun import recipes
from nemorun.config import notes_of, resources_of
from nemorun.errors import ConfigError
from nemorun.llm import GPTConfig, pretrain
from nemorun.llm.data.config import DataConfig, FinetuneDataConfig
from nemorun.llm.fits import Run
from nemorun.llm.memory import GIB
from nemorun.llm.settling import ENOUGH, ROOM, ROOM_WITHOUT_EXCHANGES, settled
from nemorun.training.config import LogConfig, TrainerConfig

H100, H200 = 79.1 * GIB, 139.8 * GIB


def run_of(recipe: str, **arguments: Any) -> Run:
    found = getattr(recipes, recipe)(**arguments).build().keywords
    return Run(*(found[name] for name in ("model", "trainer", "data", "optim", "parallelism")))


@pytest.mark.parametrize(
    ("recipe", "arguments", "capacity", "rows", "once", "recompute"),
    [
        ("llama3_8b_pretrain", {}, H200, 2, True, "none"),  # 2 x 8,192 tokens
        ("llama3_8b_pretrain", {}, H100, 1, False, "none"),  # 84 of 79 GiB with whole sums, 83 with two
        ("llama3_8b_pretrain", {"num_gpus": 2}, H200, 1, True, "none"),  # 143 of 140 GiB with two
        ("llama3_8b_finetune", {"num_gpus": 1}, H100, 4, False, "none"),  # 67 of 79 GiB with eight
        ("llama3_8b_finetune", {"num_gpus": 1}, H200, 8, False, "none"),  # 8 x 2,048 tokens
        ("llama3_70b_pretrain", {}, H200, 1, False, "none"),  # a pipeline
    ],
)
def test_a_gpu_gets_what_makes_use_of_it_and_fits(
    recipe: str, arguments: dict[str, Any], capacity: float, rows: int, once: bool, recompute: str
) -> None:
    if "finetune" in recipe:
        arguments = {**arguments, "data_path": "x.jsonl"}
    run = run_of(recipe, **arguments)
    found = settled(run, capacity)
    assert (found.data.micro_batch_size, found.trainer.sync_each_micro_batch) == (rows, not once)
    assert found.trainer.recompute == recompute
    open_again = replace(
        found,
        data=replace(found.data, micro_batch_size=None),
        trainer=replace(found.trainer, sync_each_micro_batch=None, recompute=None),
    )
    assert open_again == run
    length = found.data.seq_length or found.model.seq_length
    assert rows * length <= ENOUGH
    assert found.share(capacity) <= 1 - (ROOM_WITHOUT_EXCHANGES if once else ROOM)


def test_a_number_that_is_given_stays() -> None:
    run = run_of("llama3_8b_pretrain")
    given = replace(run, data=replace(run.data, micro_batch_size=4))
    assert settled(given, H100).data.micro_batch_size == 4


def test_a_way_to_exchange_that_is_given_stays() -> None:
    run = run_of("llama3_8b_pretrain")
    for way in (True, False):
        given = replace(run, trainer=replace(run.trainer, sync_each_micro_batch=way))
        assert settled(given, H200).trainer.sync_each_micro_batch is way


@pytest.mark.parametrize(
    ("part", "name", "value", "words"),
    [
        ("trainer", "reshard_after_forward", True, "set trainer.reshard_after_forward=False"),
        ("parallelism", "tensor_parallel", 2, "is not for parallelism.tensor_parallel=2"),
        ("parallelism", "pipeline_parallel", 2, "is not for parallelism.pipeline_parallel=2"),
    ],
)
def test_whole_sums_are_refused_where_they_are_not_built(
    part: str, name: str, value: object, words: str
) -> None:
    task = recipes.llama3_8b_pretrain()
    task.trainer.sync_each_micro_batch = False
    resources_of(task)
    setattr(getattr(task, part), name, value)
    with pytest.raises(ConfigError, match=words):
        resources_of(task)


def test_one_micro_batch_a_step_is_exchanged_as_it_comes() -> None:
    run = run_of("llama3_8b_pretrain", num_gpus=2)
    one = replace(run, data=replace(run.data, global_batch_size=2))
    assert settled(one, H200).trainer.sync_each_micro_batch is True


def test_one_rank_exchanges_nothing() -> None:
    run = run_of("llama3_8b_pretrain", num_gpus=1)
    assert settled(run, 10 * H200).trainer.sync_each_micro_batch is True


def test_without_a_gpu_it_is_one() -> None:
    assert settled(run_of("llama3_8b_pretrain"), None).data.micro_batch_size == 1


@pytest.mark.parametrize(
    ("gib", "recompute"), [(79.1, "none"), (75.0, "selective"), (64.0, "selective"), (62.0, "full")]
)
def test_the_less_room_there_is_the_more_is_computed_again(gib: float, recompute: str) -> None:
    run = run_of("llama3_8b_pretrain")  # about 62, 58 and 37 GiB
    found = settled(run, gib * GIB)
    assert found.trainer.recompute == recompute
    for kind in ("none", "selective", "full"):
        given = replace(run, trainer=replace(run.trainer, recompute=kind))
        assert settled(given, gib * GIB).trainer.recompute == kind


def test_trained_float8_keeps_what_was_measured() -> None:
    run = run_of("llama3_8b_pretrain", num_gpus=2)
    float8 = replace(run, trainer=replace(run.trainer, precision="fp8-mixed"))
    assert settled(float8, H200).trainer.recompute == "selective"
    assert settled(replace(float8, trainer=replace(float8.trainer, precision="bf16-mixed")), H200) == settled(
        run, H200
    )


def test_the_global_batch_has_to_be_divided() -> None:
    run = run_of("llama3_8b_finetune", data_path="x.jsonl")
    for rows_of_all, rows in ((8, 1), (16, 2), (24, 1), (128, 8)):
        odd = replace(run, data=replace(run.data, global_batch_size=rows_of_all))
        assert settled(odd, H200).data.micro_batch_size == rows


def test_ranks_that_share_a_sequence_take_more_of_them() -> None:
    run = run_of("llama3_8b_pretrain")
    shared = replace(run, parallelism=replace(run.parallelism, context_parallel=4))
    assert settled(shared, 10 * H200).data.micro_batch_size == 8


@pytest.mark.parametrize("config", [DataConfig, FinetuneDataConfig])
def test_none_is_a_value_and_zero_is_not(config: Any) -> None:
    config(**({"train_data": "x"} if config is FinetuneDataConfig else {})).validate()
    with pytest.raises(ConfigError, match="micro_batch_size=0 must be at least 1"):
        config(micro_batch_size=0).validate()


def test_what_a_gpu_has_decides_before_the_launch_what_is_shown() -> None:
    task = recipes.llama3_8b_pretrain()
    assert "with micro-batches of 1, recompute=none, at its peak" in notes_of(task)[0]
    assert "set trainer.gpu_memory_gib" in notes_of(task)[0]
    task.trainer.gpu_memory_gib = 139.8
    chosen = "with micro-batches of 2, recompute=none, gradients exchanged once a step, at its peak"
    assert chosen in notes_of(task)[0] and "set trainer" not in notes_of(task)[0]
    task.data.micro_batch_size = 1
    task.trainer.recompute = "selective"
    assert ") with gradients exchanged once a step, at its peak" in notes_of(task)[0]
    task.trainer.sync_each_micro_batch = True
    assert "with" not in notes_of(task)[0]
    assert resources_of(task) is not None


def test_a_run_says_what_it_takes_and_learns_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shape = GPTConfig(hidden_size=64, num_layers=2, num_attention_heads=4, seq_length=64, vocab_size=257)
    losses = []
    for capacity, words in ((None, "in micro-batches of 1"), (H100, "in micro-batches of 8")):
        monkeypatch.setattr("nemorun.llm.run._smallest_gpu", lambda ranks, capacity=capacity: capacity)
        result = pretrain(
            shape,
            TrainerConfig(max_steps=3, precision="fp32", accelerator="cpu", val_batches=0, compile=False),
            data=DataConfig(global_batch_size=8),
            log=LogConfig(dir=tmp_path / words),
            sample=None,
        )
        assert f"3 steps of 8 x 64 tokens {words}," in capsys.readouterr().out
        losses.append(result["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
