"""Benchmarks that need GPUs, tried on the CPU."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

BENCHES = Path(__file__).parents[1] / "scripts" / "bench"
TINY: dict[str, Any] = {
    "hidden_size": 64,
    "num_layers": 2,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "ffn_hidden_size": 128,
    "seq_length": 32,
    "vocab_size": 97,
}


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHES))
    import train

    return train


def tiny(**changes: Any) -> dict[str, Any]:
    return {
        "rows": 2,
        "steps": 3,
        "warm": 5,
        "micro_batches": 1,
        "layers": None,
        "model": {**TINY, **changes},
    }


@pytest.mark.slow
def test_layouts_are_run_by_the_command_that_it_prints_and_compared(tmp_path: Path) -> None:
    file = tmp_path / "layouts.json"
    command = [sys.executable, BENCHES / "layouts.py", "--smoke", "--layers", "1", "--json", file]
    command += ["--rows", "lora", "lora tp2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    first, one, second, other, *table = done.stdout.splitlines()
    for printed in (first, second):
        assert printed.startswith("nemorun run llama3_8b_finetune ") and printed.endswith(" --executor local")
    assert "parallelism.tensor_parallel=2" in second and "model.num_layers=1" in second
    assert one.startswith("lora  ") and other.startswith("lora tp2 ") and len(table) == 3
    rows = json.loads(file.read_text())
    assert [row["command"] for row in rows.values()] == [first, second]
    # two runs: two ranks round somewhere else than one, if not always in a loss
    assert len({str((row["losses"], row["norms"])) for row in rows.values()}) == 2
    assert rows["lora"]["apart"] == 0 <= rows["lora tp2"]["apart"] <= rows["lora tp2"]["bound"] == 1e-4


def test_layouts_that_fail_or_are_too_far_apart_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHES))
    import layouts

    def ends_with(*rows: dict[str, Any]) -> tuple[int, str]:
        names = ["fsdp2", "tp2", "mixtral fsdp2", "mixtral ep2"][: len(rows)]
        found = iter(rows)
        monkeypatch.setattr(layouts, "run", lambda _: next(found))
        monkeypatch.setattr(sys, "argv", ["layouts.py", "--rows", *names])
        return layouts.main(), capsys.readouterr().out

    def a_row(*losses: float) -> dict[str, Any]:
        numbers = {"losses": list(losses), "norms": [1.0, 1.0]}
        return {**numbers, "tokens_per_second_per_gpu": 1000.0, "peak_memory_gib": 10.0}

    # each family has its own first row and its own bound
    assert ends_with(a_row(9.0, 8.0), a_row(9.0, 8.01), a_row(7.0, 6.0), a_row(7.0, 6.09))[0] == 0
    code, told = ends_with(a_row(9.0, 8.0), a_row(9.03, 8.0))
    assert code == 1 and "apart by 0.0300 TOO FAR" in told and told.count("TOO FAR") == 2
    assert ends_with(a_row(9.0, 8.0), a_row(9.0, math.nan))[0] == 1
    # what fails is no row to compare with
    code, told = ends_with({"error": "exit code 1: no memory"}, a_row(9.0, 8.0))
    assert code == 1 and "fsdp2          exit code 1: no memory" in told and "apart by 0.0000  " in told
    assert "fsdp2          failed" in told


def test_the_peer_of_a_lora_row_trains_as_many_adapters_as_ours(
    train: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from nemorun.llm import GPTModel

    row = tiny(lora=train.LORA)
    config = train.model_config(row)
    peer = train.peer.with_adapters(config, torch.device("cpu"))
    trained = {name: p.numel() for name, p in peer.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained) and len(trained) == 2 * 7 * TINY["num_layers"]
    ours = sum(p.numel() for p in GPTModel(config).parameters() if p.requires_grad)
    assert sum(trained.values()) == ours

    monkeypatch.setenv("RANK", "0")
    train.peer.train(row, config)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert math.isfinite(found["loss"]) and found["trained"] == ours
    assert "peft" in found["how"] and "2 x 32 a GPU, sdpa, every layer recomputed" in found["how"]
    assert f"ours/peer  2.00 {'':>16} {found['jitter']:>10.3f}" in train.peer.line(
        found, 2 * found["tokens_per_second_per_gpu"]
    )


@pytest.mark.slow
def test_the_peer_of_a_pretraining_row_trains_all_weights_on_two_ranks(train: ModuleType) -> None:
    found = train.peer.beside(tiny(), 2, train.start)
    assert "error" not in found, found
    assert math.isfinite(found["loss"]) and found["rows"] == 2
    assert found["trained"] == train.model_config(tiny()).num_parameters()


def test_a_peer_that_cannot_run_says_why(train: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    peer, tried = train.peer, []

    def start(row: dict[str, Any], gpus: int) -> dict[str, Any]:
        tried.append(row["rows"])
        return {"error": said if row["rows"] > 1 else then}

    full = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 8 GiB\n[rank0] left"
    said = then = full
    found = peer.beside(tiny(), 2, start)
    assert peer.line(found, 1.0).endswith("one sequence a GPU does not fit into its memory") and tried == [
        2,
        1,
    ]
    then = "Traceback\nRuntimeError: no such kernel\nleft"
    assert peer.beside(tiny(), 2, start)["error"] == "failed: RuntimeError: no such kernel"

    installed = peer.find_spec
    monkeypatch.setattr(peer, "find_spec", lambda name: None if name == "peft" else installed(name))
    assert peer.beside(tiny(lora=train.LORA), 1, start)["error"] == "not run: peft not installed"
    assert tried == [2, 1, 2, 1]


def test_a_profile_says_between_which_kernels_a_gpu_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHES))
    from kernels import kernel_table
    from torch.autograd import DeviceType

    spans = [("first", 0, 10), ("second", 12, 20), ("beside it", 15, 18), ("third", 25, 30), ("last", 30, 31)]
    ran = [
        SimpleNamespace(
            key=name,
            device_type=DeviceType.CUDA,
            time_range=SimpleNamespace(start=start, end=end),
            self_device_time_total=end - start,
            count=1,
        )
        for name, start, end in spans
    ]
    profiler = SimpleNamespace(events=lambda: ran, key_averages=lambda: ran)
    total, idle, *rest = kernel_table(profiler).splitlines()
    assert total.split() == ["0.03", "ms", "in", "all"] and idle.split()[:2] == ["0.01", "ms"]
    assert len(rest) == 7 and "first" in rest[0]
    assert [line.split("waited ")[1] for line in rest[5:]] == [
        "after second for third",
        "after first for second",
    ]
    assert [line.split()[0] for line in rest[5:]] == ["0.005", "0.002"]
