"""What a run says of itself: speed, memory, spikes, gradients that are no numbers, Weights & Biases."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nemorun.training import TrainingError
from nemorun.training import progress as progress_module
from nemorun.training.batch import Batch
from nemorun.training.distributed import Ranks
from nemorun.training.nan import NanGuard
from nemorun.training.progress import Clock, step_line
from nemorun.training.speed import Speed, peak_flops, peak_memory_gib, speed_of
from nemorun.training.spikes import LossSpikes

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756.4e12),
        ("NVIDIA GH200 480GB", 989.4e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362.05e12),
        ("NVIDIA H20", 148e12),
        ("NVIDIA B200", 2250e12),
        ("Some other device", None),
    ],
)
def test_the_peak_of_a_device_is_that_of_its_data_sheet(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


def test_mfu_is_what_others_publish() -> None:
    # torchtitan on 2 x H200: 9,811 tokens/s/GPU of Llama-3.1-8B at 8,192 is 57.5 % by its own account
    speed = Speed(2, flops_per_token=5.79e10, flops_per_token_causal=5.15e10, peak=989e12)
    found = speed.numbers(2 * 9811)
    assert found["tokens_per_second_per_gpu"] == 9811
    assert found["mfu"] == pytest.approx(0.575, abs=0.001)
    assert found["mfu_causal"] == pytest.approx(0.511, abs=0.001)


def test_a_gpu_that_is_not_known_has_no_mfu_which_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Nova 1")
    for first in (True, False):
        speed = speed_of(torch.device("cuda"), 2, 1.0, 1.0, first)
        assert speed.numbers(10.0) == {"tokens_per_second": 10.0, "tokens_per_second_per_gpu": 5.0}
    assert capsys.readouterr().out == "no MFU is given: the peak of 'Nova 1' is not known\n"
    assert speed_of(CPU, 1, 1.0, 1.0, True).peak is None
    assert capsys.readouterr().out == ""
    assert 0.05 < peak_memory_gib(CPU) < 100


def test_the_line_shows_what_is_known() -> None:
    values = {"loss": 2.0, "lr": 1e-4, "grad_norm": 1.5, "tokens_per_second": 19622.0}
    assert step_line(3, 100, values, 61) == (
        "step   3/100 | loss 2.0000 | lr 1.00e-04 | grad norm 1.50 | 19,622 tokens/s | ETA 0:01:01"
    )
    values |= {"tokens_per_second_per_gpu": 9811.0, "mfu": 0.575, "peak_memory_gib": 98.64}
    values |= {"data_wait": 0.12, "checkpoint_stall": 0.31}
    assert step_line(3, 100, values, 61).endswith(
        "19,622 tokens/s | 9,811 a GPU | MFU 57.5% | 98.6 GiB | 12% waiting for data "
        "| 0.3 s for the checkpoint | ETA 0:01:01"
    )


def test_the_clock_tells_the_share_of_waiting_for_data(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: now)
    clock = Clock(0, 0)
    with clock.waiting():
        now += 2
    now += 6
    with clock.paused():
        now += 50
    assert clock.lap(1, 800) == 100
    assert clock.data_wait == 0.25
    now += 1
    clock.lap(2, 900)
    assert clock.data_wait == 0


def notices(losses: list[float]) -> dict[int, str]:
    spikes = LossSpikes(window=20)
    said = {step: spikes.notice(step, loss) for step, loss in enumerate(losses, start=1)}
    return {step: text for step, text in said.items() if text}


def test_a_spike_is_noticed_once() -> None:
    normal = [2.0 + 0.02 * math.sin(step) for step in range(30)]
    found = notices([*normal, 3.0, 3.5, 3.2, *normal, 2.9, *normal])
    assert list(found) == [31, 64]
    assert found[31].startswith("the loss jumped at step 31: 3.0000, after 1.99")


def test_what_is_no_spike_is_not_noticed() -> None:
    falling = [10 / (1 + step / 10) for step in range(200)]
    assert notices(falling) == {}
    assert notices([2.0] * 30 + [2.01] * 30) == {}  # a ripple
    assert notices([5.0] * 3 + [50.0]) == {}  # too early to tell
    lasting = notices([2.0] * 30 + [4.0] * 100)
    assert list(lasting) == [31]  # and then it is how things are


class Alone(Ranks):
    def all(self, true: bool) -> bool:
        return true


def guard(policy: str, folder: Path) -> NanGuard:
    return NanGuard(policy, Alone(0, 1, CPU), folder)  # type: ignore[arg-type]  # as of a configuration


def batches(step: int) -> list[Batch]:
    padding = torch.tensor([[False, False, True, True]])
    return [Batch(torch.full((1, 4), step), torch.full((1, 4), step + 1), padding=padding) for _ in range(2)]


def test_a_gradient_that_is_no_number_stops_the_run_with_its_batch_saved(tmp_path: Path) -> None:
    watching = guard("stop", tmp_path)
    assert watching.watch(1, torch.tensor(2.0), batches(1)) == 0
    assert watching.watch(2, torch.tensor(math.inf), batches(2)) == 1
    assert watching.watch(3, torch.tensor(2.0), batches(3)) == 0
    with pytest.raises(
        TrainingError, match=r"stopped: at step 2 the gradient's norm is inf. Its batch is saved"
    ):
        watching.report()
    saved = torch.load(tmp_path / "nan-step-2" / "rank-00000.pt", weights_only=True)
    assert [batch["tokens"].tolist() for batch in saved] == [[[2] * 4]] * 2
    assert saved[0]["labels"].tolist() == [[3] * 4] and saved[0]["positions"] is None
    assert saved[0]["padding"].tolist() == [[False, False, True, True]]


def test_single_steps_are_left_out_and_many_in_a_row_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watching = guard("skip", tmp_path)
    for step, norm in enumerate([1.0, math.nan, 1.0, math.nan], start=1):
        watching.watch(step, torch.tensor(norm), batches(step))
    assert watching.report() == [2, 4]
    assert watching.report() == []
    assert capsys.readouterr().out.count("the step is left out. Its batch is saved in") == 2
    with pytest.raises(TrainingError, match=r"and so it was in the 9 steps before"):
        for step in range(5, 40):  # it does not wait for a report that may come late
            watching.watch(step, torch.tensor(math.nan), batches(step))
    assert len(list(tmp_path.glob("nan-step-*"))) == 3


def test_a_batch_that_cannot_be_saved_does_not_hide_why_the_run_stops(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    watching = guard("stop", tmp_path / "file")
    watching.watch(1, torch.tensor(math.nan), batches(1))
    with pytest.raises(
        TrainingError, match=r"at step 1 .* is nan. Its batch could not be saved in .*Not a dir"
    ):
        watching.report()


def test_numbers_go_to_weights_and_biases_offline(tmp_path: Path) -> None:
    code = (
        "import sys; from nemorun.training import LogConfig; from nemorun.training.metrics import Metrics;"
        "metrics = Metrics(LogConfig(dir=sys.argv[1], tensorboard=False), step=0);"
        "metrics.write(1, loss=2.0); metrics.close()"
    )
    # In a process of its own, with which what wandb starts ends.
    env = {**os.environ, "WANDB_MODE": "offline", "NEMORUN_WANDB": '{"project": "p"}'}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=env, check=True, capture_output=True)
    (written,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert written.stat().st_size > 0
