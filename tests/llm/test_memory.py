"""Memory as it is predicted, against the code and against GPUs, and what becomes of runs that do not fit."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemorun.config import notes_of, resources_of
from nemorun.errors import ConfigError
from nemorun.llm import GPTModel
from nemorun.llm import run as running
from nemorun.llm.activations import block_activations
from nemorun.llm.config import DataConfig, GPTConfig, LoraConfig
from nemorun.llm.fits import Run, refusal, suggestions, warning
from nemorun.llm.memory import GIB, OUTSIDE
from nemorun.llm.peak import LOSS_ROWS, in_flight_pieces, peak_memory, stage_memory
from nemorun.recipes import llama3_8b_pretrain
from nemorun.training import loss
from nemorun.training.batch import Inputs
from nemorun.training.config import OptimConfig, ParallelismConfig, TrainerConfig
from nemorun.training.distributed import Ranks, join
from nemorun.training.errors import TrainingError
from nemorun.training.layout import Layout
from nemorun.training.parallel import parallelize
from nemorun.training.pipeline import Pipeline
from tests.training.forks import Forks

BENCH = Path(__file__).parents[2] / "scripts" / "bench"
LLAMA = GPTConfig(num_query_groups=8, ffn_hidden_size=14336)
LORA = LoraConfig(enabled=True, rank=16)
ATTENTION = LoraConfig(enabled=True, rank=16, targets=("q_proj", "k_proj", "v_proj", "o_proj"))
MIXTRAL = replace(LLAMA, vocab_size=32000, num_experts=8, lora=ATTENTION)
BF16 = OptimConfig(moments="bf16")
FULL = {"recompute": "full"}
SELECTIVE = {"recompute": "selective"}
KEPT = {**SELECTIVE, "reshard_after_forward": False}
SUMMED = {**KEPT, "sync_each_micro_batch": False}
FLOAT8 = {**SELECTIVE, "precision": "fp8-mixed"}


def a_run(
    model: GPTConfig = LLAMA,
    gpus: int = 2,
    length: int = 4096,
    micro_batches: int = 1,
    optim: OptimConfig = BF16,
    trainer: dict[str, Any] = FULL,
    rows: int = 1,
    **parallelism: Any,
) -> Run:
    kinds = ParallelismConfig(**parallelism)
    batch = rows * micro_batches * kinds.data_ranks(gpus)
    data = DataConfig(global_batch_size=batch, micro_batch_size=rows, seq_length=length)
    return Run(model, TrainerConfig(devices=gpus, **trainer), data, optim, kinds)


#: GiB as measured on H100s and H200s, torch 2.11 (docs/performance.md), and the stage that was measured.
MEASURED = {
    "LoRA": (51.8, a_run(replace(LLAMA, lora=LORA), 1, 8192, optim=OptimConfig(), trainer={}), 0),
    "FSDP2 x 2, 8,192 tokens": (47.9, a_run(length=8192), 0),
    "PP2": (47.7, a_run(micro_batches=4, pipeline_parallel=2), 0),
    "CP2": (51.8, a_run(micro_batches=4, context_parallel=2), 0),
    "Mixtral": (52.3, a_run(MIXTRAL, length=2048, micro_batches=2, optim=OptimConfig()), 0),
    "Mixtral, EP2": (
        54.0,
        a_run(MIXTRAL, length=2048, micro_batches=2, optim=OptimConfig(), expert_parallel=2),
        0,
    ),
    "LoRA, selective": (
        40.7,
        a_run(replace(LLAMA, lora=LORA), 1, 8192, optim=OptimConfig(), trainer=SELECTIVE),
        0,
    ),
    "LoRA, full": (19.6, a_run(replace(LLAMA, lora=LORA), 1, 8192, optim=OptimConfig()), 0),
    "LoRA, TP2": (
        10.5,
        a_run(replace(LLAMA, lora=LORA), 2, 2048, 4, OptimConfig(), tensor_parallel=2),
        0,
    ),
    "nothing recomputed": (78.0, a_run(length=8192, optim=OptimConfig(), trainer={}), 0),
    "summed whole": (116.0, a_run(length=8192, micro_batches=8, optim=OptimConfig(), trainer=SUMMED), 0),
    "summed whole, nothing recomputed": (
        120.0,
        a_run(length=8192, micro_batches=8, optim=OptimConfig(), trainer={**SUMMED, "recompute": "none"}),
        0,
    ),
    "summed whole, float8": (
        129.0,
        a_run(
            length=8192,
            micro_batches=16,
            optim=OptimConfig(),
            trainer={**SUMMED, "precision": "fp8-mixed"},
        ),
        0,
    ),
    "summed whole, two rows": (
        116.0,
        a_run(rows=2, micro_batches=8, optim=OptimConfig(), trainer=SUMMED),
        0,
    ),
}


@pytest.mark.parametrize("name", MEASURED)
def test_what_gpus_have_taken_is_predicted(name: str) -> None:
    gib, run, stage = MEASURED[name]
    assert run.memory(stage).total / GIB == pytest.approx(gib, rel=0.03)


@pytest.fixture(scope="module")
def fake_peak() -> Any:
    sys.path.insert(0, str(BENCH))
    try:
        from memory_fake import fake_peak
    finally:
        sys.path.remove(str(BENCH))
    return fake_peak


MODELS = {
    "dense": LLAMA,
    "lora": replace(LLAMA, lora=LORA),
    "experts": replace(MIXTRAL, lora=LoraConfig()),
    "experts-lora": MIXTRAL,
}
#: One of each kind of recomputation for all; the others take as long again.
QUICK = {("dense", "none"), ("dense", "selective"), ("dense", "full"), ("lora", "none")}
QUICK |= {("experts", "selective"), ("experts-lora", "full")}


@pytest.mark.parametrize(
    ("name", "recompute"),
    [
        pytest.param(name, kind, marks=[] if (name, kind) in QUICK else [pytest.mark.slow])
        for name in MODELS
        for kind in ("none", "selective", "full")
    ],
)
def test_the_code_keeps_and_takes_what_is_predicted(name: str, recompute: str, fake_peak: Any) -> None:
    model = MODELS[name]
    run = a_run(replace(model, num_layers=3), length=2048, trainer={"recompute": recompute})
    fake = fake_peak(run.model, run.trainer, run.optim, run.parallelism, 1, 2048, 1)
    kinds = run.parallelism
    block = block_activations(run.model, kinds, 2048, 2, casts_weights=False)
    hidden = 2048 * model.hidden_size * 2
    kept = block.kept[recompute] - hidden  # type: ignore[index]  # parametrized
    assert kept == pytest.approx(fake.kept, rel=0.01, abs=hidden / 10)
    assert run.memory().total == pytest.approx(fake.peak, rel=0.05)


@pytest.mark.parametrize("length", [128, 4096])  # the peak is where gradients are, or activations
def test_weights_that_are_kept_between_micro_batches_are_counted(length: int, fake_peak: Any) -> None:
    settings = {"recompute": "full", "reshard_after_forward": False}
    model = replace(LLAMA, num_layers=12, vocab_size=4096)
    run = a_run(model, 8, length, trainer=settings, micro_batches=2)
    fake = fake_peak(run.model, run.trainer, run.optim, run.parallelism, 1, length, 2)
    assert run.memory().total == pytest.approx(fake.peak, rel=0.03)


@pytest.mark.parametrize("length", [128, 4096])
def test_whole_sums_of_gradients_are_counted(length: int, fake_peak: Any) -> None:
    settings = {**KEPT, "sync_each_micro_batch": False}
    model = replace(LLAMA, num_layers=6, vocab_size=4096)
    run = a_run(model, 8, length, trainer=settings, micro_batches=3)
    fake = fake_peak(run.model, run.trainer, run.optim, run.parallelism, 1, length, 3)
    assert run.memory().total == pytest.approx(fake.peak, rel=0.05)


def test_a_frozen_float8_base_takes_a_byte_more_for_each_weight() -> None:
    plain = a_run(replace(LLAMA, lora=LORA), 1, trainer=FULL)
    float8 = replace(plain, trainer=replace(plain.trainer, precision="fp8-mixed"))
    more = float8.memory().weights - plain.memory().weights
    assert more / GIB == pytest.approx(6.5, rel=0.01)


def test_the_loss_takes_as_many_rows_as_are_counted() -> None:
    assert LOSS_ROWS == loss._ROWS


@pytest.mark.parametrize(
    ("kinds", "in_flight"),
    [
        ({"pipeline_parallel": 4}, [4, 3, 2, 1]),
        ({"pipeline_parallel": 4, "virtual_pipeline": 2}, [11, 9, 7, 5]),
        ({"pipeline_parallel": 4, "virtual_pipeline": 2, "pipeline_schedule": "zero-bubble"}, [8, 8, 8, 8]),
    ],
)
def test_micro_batches_that_wait_in_a_pipeline(kinds: dict[str, Any], in_flight: list[int]) -> None:
    parallelism = ParallelismConfig(**kinds)
    assert [in_flight_pieces(parallelism, 8, stage) for stage in range(4)] == in_flight


def a_pipelines_buffers() -> None:
    model = GPTConfig(hidden_size=32, num_layers=2, num_attention_heads=4, seq_length=16, vocab_size=64)
    config, kinds = TrainerConfig(accelerator="cpu", devices=2), ParallelismConfig(pipeline_parallel=2)
    with join(config) as ranks:
        layout = Layout(config, kinds, ranks)
        passes = Pipeline(parallelize(GPTModel(model), config, layout), layout)
        tokens = torch.arange(16)[None]
        passes.train([(tokens, Inputs(tokens))] * 6, 1.0)
        (schedule,) = passes._schedules.values()
        found = [info for infos in schedule._stage.args_recv_info.values() for info in infos]
        found += [info for infos in schedule._stage.grad_recv_info.values() for info in infos]
        tensors = [info.buffer for info in found if getattr(info, "buffer", None) is not None]
        assert all(tensor.grad is None for tensor in tensors)
        held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        data = DataConfig(global_batch_size=6)
        memory = stage_memory(model, config, data, OptimConfig(), kinds, layout.stage)
        assert held == memory.pipeline > 0


def test_a_pipeline_holds_a_buffer_for_each_micro_batch() -> None:
    forks = Forks()
    try:
        forks.check(a_pipelines_buffers, 2)
    finally:
        forks.close()


shapes = st.fixed_dictionaries(
    {
        "model": st.sampled_from([LLAMA, replace(LLAMA, lora=LORA), MIXTRAL]),
        "gpus": st.sampled_from([8, 16]),
        "length": st.sampled_from([2048, 8192]),
        "micro_batches": st.sampled_from([4, 16]),
        "optim": st.sampled_from([OptimConfig(), BF16]),
        "pipeline_parallel": st.sampled_from([1, 2]),
    }
)


@settings(max_examples=40)
@given(shapes)
def test_more_recomputation_never_takes_more(shape: dict[str, Any]) -> None:
    kinds = ("full", "selective", "none")
    totals = [a_run(trainer={"recompute": kind}, **shape).memory().total for kind in kinds]
    assert totals == sorted(totals)


@settings(max_examples=40)
@given(shapes, st.sampled_from(["none", "selective", "full"]))
def test_more_tensor_parallelism_never_takes_more_where_data_ranks_stay(
    shape: dict[str, Any], recompute: str
) -> None:
    gpus = shape.pop("gpus")
    totals = [
        a_run(trainer={"recompute": recompute}, gpus=gpus * ranks, tensor_parallel=ranks, **shape)
        .memory()
        .total
        for ranks in (8, 4, 2)
    ]
    assert totals == sorted(totals)


# --- runs that do not fit ---


def test_a_run_that_does_not_fit_is_refused_with_what_would() -> None:
    run = a_run(trainer={}, optim=OptimConfig(), length=8192)
    text = refusal(run, 72.5 * GIB)
    assert text is not None
    assert "GiB a GPU (" in text and "moments" in text and "a GPU has 72.5 GiB" in text
    found = suggestions(run, 72.5 * GIB)
    assert found
    for changes in found:
        assert all(str(change) in text for change in changes)
        changed: Run | None = run
        for change in changes:
            changed = changed.changed(change) if changed else None
        assert changed is not None and changed.memory().total + OUTSIDE < 72.5 * GIB


def test_cheap_changes_are_taken_together_where_none_is_enough() -> None:
    run = a_run(trainer={}, optim=OptimConfig(), length=8192, gpus=2)
    changes = suggestions(run, 52 * GIB)[0]
    assert " ".join(map(str, changes)) == "trainer.recompute=full optim.moments=bf16"
    assert suggestions(a_run(replace(LLAMA, hidden_size=2**16)), GIB) == []


def test_whole_sums_are_the_first_to_go() -> None:
    run = a_run(trainer=SUMMED, optim=OptimConfig(), length=8192, micro_batches=2)
    assert [str(change) for change in suggestions(run, 115 * GIB)[0]] == [
        "trainer.sync_each_micro_batch=True"
    ]


def test_near_the_limit_there_is_a_warning_and_no_refusal() -> None:
    run = a_run()
    needs = run.memory().total + OUTSIDE
    for capacity in (needs * 1.04, needs * 0.96):
        assert refusal(run, capacity) is None
        assert "may not fit" in (warning(run, capacity) or "")
    assert refusal(run, needs * 0.9) and not warning(run, needs * 0.9)
    assert not refusal(run, needs * 1.1) and not warning(run, needs * 1.1)


def test_the_launcher_refuses_what_its_gpus_cannot_hold() -> None:
    recipe = llama3_8b_pretrain(num_gpus=1)
    assert resources_of(recipe)
    recipe.trainer.gpu_memory_gib = 79.1
    with pytest.raises(ConfigError, match=r"the run needs about .* a GPU has 79.1 GiB") as refused:
        resources_of(recipe)
    assert refused.value.exit_code == 2
    recipe.trainer.accelerator = "cpu"
    assert resources_of(recipe)
    with pytest.raises(ConfigError, match="gpu_memory_gib=0"):
        TrainerConfig(gpu_memory_gib=0).validate()


def test_the_estimate_is_told_beside_a_recipes_fields() -> None:
    recipe = llama3_8b_pretrain()
    (note,) = notes_of(recipe)
    assert note.startswith("memory: about 62.1 GiB a GPU (activations ")
    recipe.trainer.accelerator = "cpu"
    assert notes_of(recipe) == []


class _Training:
    """What `_check_memory` asks of the loop."""

    def __init__(self, fits_elsewhere: bool = True) -> None:
        self.ranks = _Ranks(0, 1, torch.device("cpu"), None)
        self.ranks.__dict__["elsewhere"] = fits_elsewhere
        self.layout = type("Layout", (), {"stage": 0})()


class _Ranks(Ranks):
    elsewhere = True

    def all(self, true: bool) -> bool:
        return true and self.elsewhere


def test_a_job_stops_before_its_weights_get_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    run, said = a_run(), []
    monkeypatch.setattr(running, "gpu_memory", lambda device: 40 * GIB)
    with pytest.raises(TrainingError, match=r"a GPU has 40\.0 GiB") as stopped:
        running._check_memory(run, _Training(), said.append)  # type: ignore[arg-type]
    assert stopped.value.exit_code == 1
    assert said[0].startswith("memory   about 44.") or "GiB a GPU" in said[0]
    monkeypatch.setattr(running, "gpu_memory", lambda device: 80 * GIB)
    running._check_memory(run, _Training(), said.append)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="another rank"):
        running._check_memory(run, _Training(fits_elsewhere=False), said.append)  # type: ignore[arg-type]


def test_a_pipelines_worst_stage_counts() -> None:
    _, run, _ = MEASURED["PP2"]
    settings = (run.model, run.trainer, run.data, run.optim, run.parallelism)
    both = [stage_memory(*settings, stage).total for stage in (0, 1)]
    assert peak_memory(*settings).total == max(both) == both[1]  # the logits are there
