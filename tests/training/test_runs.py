"""Whole runs on real ranks: equal under every layout, and exact after whatever interrupts them."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from nemorun.job import EXIT_RESUME
from tests.training.ranks import finish, kill, metrics, start, train, wait_for


@pytest.fixture
def data(tmp_path: Path) -> dict[str, str]:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(12):
        (corpus / f"{number}.txt").write_text(
            f"{number} green bottles, standing on the wall. " * (20 + number)
        )
    return {"path": str(corpus)}


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_one_rank_and_two_learn_the_same_under_each_strategy(tmp_path: Path, data: dict[str, str]) -> None:
    layouts = {"one": (1, "fsdp", 2), "fsdp": (2, "fsdp", 1), "ddp": (2, "ddp", 1)}
    for name, (ranks, strategy, micro) in layouts.items():
        trainer = {"strategy": strategy, "precision": "fp32", "val_interval": 3}
        train(tmp_path / name, ranks, trainer=trainer, data=data | {"micro_batch_size": micro})
    one = metrics(tmp_path / "one")
    assert one[1]["loss"] == pytest.approx(5.55, abs=0.1)  # ln 257: nothing is known yet
    assert one[6]["loss"] < one[1]["loss"] - 0.3
    assert "val_loss" in one[3] and "val_loss" in one[6]
    for name in ("fsdp", "ddp"):
        other = metrics(tmp_path / name)
        assert other.keys() == one.keys()
        for step, numbers in one.items():
            assert other[step] == pytest.approx(numbers, rel=2e-5), (name, step)


def test_a_run_killed_in_the_middle_of_a_save_goes_on_exactly(tmp_path: Path, data: dict[str, str]) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = {"trainer": {"max_steps": 8}, "data": data, "checkpoint": {"interval": 3, "keep_last": 2}}
    train(whole, 2, **settings)

    ranks = start(cut, 2, fault={"hang_at": 6}, **settings)
    half = cut / "checkpoints" / "step-00000006.tmp"
    wait_for((half / "index.json").exists, ranks)
    kill(ranks)
    assert checkpoints(cut) == ["step-00000003", "step-00000006.tmp"]
    with (cut / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # as a write that was cut short leaves it

    output = train(cut, 2, **settings)
    assert "goes on from step 3" in output
    assert metrics(cut) == metrics(whole)
    assert checkpoints(cut) == checkpoints(whole) == ["step-00000006", "step-00000008"]


@pytest.mark.parametrize(("number", "world"), [(signal.SIGTERM, 2), (signal.SIGUSR2, 1)])
def test_a_signal_to_one_rank_saves_on_all_and_says_resume(
    tmp_path: Path, data: dict[str, str], number: signal.Signals, world: int
) -> None:
    folder = tmp_path / "results"
    schedule = {"schedule": "constant"}
    ranks = start(folder, world, trainer={"max_steps": 10**6}, data=data, optim=schedule)
    wait_for(lambda: (folder / "metrics.jsonl").exists() and len(metrics(folder)) > 2, ranks)
    ranks[-1].send_signal(number)
    codes, output = finish(ranks)
    assert codes == [EXIT_RESUME] * world, output
    last = max(metrics(folder))
    assert checkpoints(folder) == [f"step-{last:08d}"]

    output = train(folder, 1, trainer={"max_steps": last + 2}, data=data, optim=schedule)
    assert f"goes on from step {last}" in output  # on one rank, also after two
    assert sorted(metrics(folder)) == list(range(1, last + 3))


def test_a_save_that_fails_on_one_rank_leaves_the_last_good_one(tmp_path: Path, data: dict[str, str]) -> None:
    folder = tmp_path / "results"
    fault = {"full_at": 4, "rank": 1}
    ranks = start(folder, 2, fault=fault, trainer={"max_steps": 5}, data=data, checkpoint={"interval": 2})
    codes, output = finish(ranks)
    assert codes == [0, 0], output
    assert "warning: checkpoint" in output and "Training goes on" in output
    assert checkpoints(folder) == ["step-00000002", "step-00000005"]


def test_the_last_save_must_not_fail(tmp_path: Path, data: dict[str, str]) -> None:
    folder = tmp_path / "results"
    ranks = start(
        folder, 1, fault={"full_at": 4}, trainer={"max_steps": 4}, data=data, checkpoint={"interval": 2}
    )
    codes, output = finish(ranks)
    assert codes == [1]
    assert "step-00000004 could not be written: " in output
    assert checkpoints(folder) == ["step-00000002"]


def test_a_run_that_nobody_goes_on_from_saves_nothing_at_its_end(
    tmp_path: Path, data: dict[str, str]
) -> None:
    folder, trainer = tmp_path / "results", {"max_steps": 3, "log_interval": 10}
    train(folder, 1, trainer=trainer, data=data, checkpoint={"interval": 0, "last": False})
    assert not (folder / "checkpoints").exists()
    assert "loss" in metrics(folder)[3]
    train(folder, 1, trainer=trainer, data=data, checkpoint={"interval": 2, "last": False})
    assert checkpoints(folder) == ["step-00000002"]


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_gradient_that_is_no_number_stops_the_run_with_its_batch_saved(
    tmp_path: Path, data: dict[str, str], policy: str
) -> None:
    results = tmp_path / "results"
    wild = {"lr": 1e30, "warmup_steps": 0, "grad_clip": 0}
    ranks = start(results, 1, optim=wild, data=data, trainer={"on_nan": policy, "max_steps": 20})
    codes, output = finish(ranks)
    assert codes == [1]
    assert "stopped: at step" in output and "nan" in output
    assert not (results / "checkpoints").exists()
    saved = sorted(results.glob("nan-step-*/rank-00000.pt"))
    assert len(saved) == (1 if policy == "stop" else 3)
    (batch, *_) = torch.load(saved[0], weights_only=True)
    assert batch["tokens"].shape == (1, 32)
