"""Every recipe has its family's shape and NeMo's defaults, fits its GPUs, and goes to every executor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import nemorun as run
from nemorun import recipes
from nemorun.config import Partial, dumps, loads, resources_of, smoke, validate
from nemorun.errors import ConfigError
from nemorun.llm.fits import Run
from nemorun.llm.memory import GIB
from nemorun.llm.settling import settled
from nemorun.llm.shapes import llama3_405b
from nemorun.training import OptimConfig, TrainerConfig

PRETRAIN = [
    "llama3_8b_pretrain",
    "llama3_70b_pretrain",
    "mistral_7b_pretrain",
    "mixtral_8x7b",
    "nemotron_4_15b",
    "nemotron_4_340b",
]
FINETUNE = [
    "llama3_8b_finetune",
    "llama3_70b_finetune",
    "mistral_7b_finetune",
    "mixtral_8x7b_finetune",
    "nemotron_4_15b_finetune",
    "nemotron_4_340b_finetune",
]
#: Every recipe with its defaults, and those that fine-tune all weights, too.
ALL = {
    **{name: (name, {}) for name in PRETRAIN},
    **{name: (name, {"data_path": "/data/train.jsonl"}) for name in FINETUNE},
    **{f"{name} peft=None": (name, {"data_path": "/d.jsonl", "peft": None}) for name in FINETUNE},
}


def make(which: str) -> Partial:
    name, arguments = ALL[which]
    found: Partial = getattr(recipes, name)(**arguments)
    return found


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llama3_8b_pretrain", 8.03),
        ("llama3_70b_pretrain", 70.55),
        ("mistral_7b_pretrain", 7.25),
        ("mixtral_8x7b", 46.70),
        ("nemotron_4_15b", 15.6),
        ("nemotron_4_340b", 341.0),
    ],
)
def test_shapes_have_as_many_parameters_as_the_real_models(name: str, billions: float) -> None:
    model = getattr(recipes, name)().model.build()
    assert model.num_parameters() / 1e9 == pytest.approx(billions, rel=2e-3)
    assert llama3_405b().num_parameters() / 1e9 == pytest.approx(405.9, rel=1e-3)


@pytest.mark.parametrize(
    ("which", "lr", "batch", "layout", "nodes"),
    [
        ("llama3_8b_pretrain", 3e-4, (512, 8192), (1, 1, 1, 1, 1), 1),
        ("llama3_70b_pretrain", 3e-4, (512, 8192), (4, 4, 5, 2, 1), 4),
        ("mistral_7b_pretrain", 3e-4, (512, 4096), (1, 1, 1, 1, 1), 1),
        ("mixtral_8x7b", 3e-4, (512, 4096), (1, 4, 8, 1, 8), 8),
        ("nemotron_4_15b", 4.5e-5, (32, 4096), (4, 1, 1, 1, 1), 1),
        ("nemotron_4_340b", 1e-4, (2304, 4096), (8, 12, 8, 2, 1), 768),
        ("llama3_8b_finetune", 1e-4, (128, 2048), (1, 1, 1, 1, 1), 1),
        ("llama3_8b_finetune peft=None", 5e-6, (128, 2048), (2, 1, 1, 1, 1), 1),
        ("llama3_70b_finetune", 1e-4, (128, 2048), (8, 1, 1, 1, 1), 1),
        ("llama3_70b_finetune peft=None", 5e-6, (128, 2048), (8, 4, 1, 1, 1), 4),
        ("mistral_7b_finetune", 1e-4, (128, 2048), (1, 1, 1, 1, 1), 1),
        ("mistral_7b_finetune peft=None", 5e-6, (128, 2048), (2, 1, 1, 1, 1), 1),
        ("mixtral_8x7b_finetune", 1e-4, (128, 2048), (1, 1, 1, 1, 8), 1),
        ("mixtral_8x7b_finetune peft=None", 5e-6, (128, 2048), (1, 1, 1, 1, 8), 4),
        ("nemotron_4_15b_finetune", 1e-4, (128, 2048), (2, 1, 1, 1, 1), 1),
        ("nemotron_4_340b_finetune peft=None", 5e-6, (128, 2048), (8, 8, 1, 1, 1), 32),
    ],
)
def test_the_defaults(
    which: str, lr: float, batch: tuple[int, int], layout: tuple[int, ...], nodes: int
) -> None:
    task = make(which)
    validate(task)
    data, kinds = task.data, task.parallelism
    length = data.seq_length or task.model.seq_length
    assert (data.global_batch_size, length) == batch and data.micro_batch_size is None
    found = (kinds.tensor_parallel, kinds.pipeline_parallel, kinds.virtual_pipeline, kinds.context_parallel)
    assert (*found, kinds.expert_parallel) == layout
    assert (task.optim.lr, task.trainer.num_nodes, task.trainer.devices) == (lr, nodes, 8)
    assert (task.optim.eps, task.optim.weight_decay, task.optim.grad_clip) == (1e-5, 0.1, 1.0)
    if "finetune" in which:
        assert (task.optim.min_lr, task.optim.warmup_steps, task.optim.betas) == (0.0, 50, (0.9, 0.98))
        assert task.model.lora.enabled == ("peft=None" not in which)
        assert task.trainer.max_steps == 1000
    else:
        constant = which == "nemotron_4_15b"
        warmup = 500 if "nemotron" in which else 2000
        assert (task.optim.schedule, task.optim.warmup_steps) == (
            "constant" if constant else "cosine",
            warmup,
        )
        assert (task.optim.min_lr, task.optim.betas) == (None, (0.9, 0.95))


def run_of(task: Partial) -> Run:
    """What its memory depends on."""
    arguments = task.build().keywords
    return Run(*(arguments[name] for name in ("model", "trainer", "data", "optim", "parallelism")))


def test_what_is_measured_is_what_the_recipe_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "scripts" / "bench"))
    from train import LLAMA_8B, ROWS

    recipe = make("llama3_8b_pretrain")
    measured = {**TrainerConfig().__dict__, **ROWS["pretrain"]["trainer"]}
    for name in ("reshard_after_forward", "precision", "strategy", "compile"):
        assert measured[name] == getattr(recipe.trainer, name), name
    on_two = run_of(recipes.llama3_8b_pretrain(num_gpus=2))
    run, summed = settled(on_two, 139.8 * GIB), ROWS["pretrain-sums"]
    for name, value in summed["trainer"].items():
        assert getattr(run.trainer, name) == value, name
    assert run.data.micro_batch_size == summed["rows"]
    adapted = run_of(recipes.llama3_8b_finetune(num_gpus=1, data_path="x.jsonl"))
    assert settled(adapted, 139.8 * GIB).trainer.recompute == "none"  # as the row that is called lora
    assert "recompute" not in ROWS["lora"].get("trainer", {})
    assert "optim" not in ROWS["pretrain"] and recipe.optim.moments == OptimConfig().moments
    assert {name: getattr(recipe.model, name) for name in LLAMA_8B} == LLAMA_8B


def test_adapters_are_those_of_nemo() -> None:
    def lora(name: str) -> tuple[int, float, int]:
        found = make(name).model.lora
        return found.rank, found.alpha, len(found.targets)

    assert lora("llama3_8b_finetune") == (8, 16, 7)
    assert lora("llama3_70b_finetune") == (16, 32, 7)
    assert lora("mistral_7b_finetune") == (32, 32, 7)
    assert lora("mixtral_8x7b_finetune") == (32, 32, 4)


def test_a_recipe_is_changed_as_the_design_document_writes() -> None:
    recipe = recipes.llama3_8b_finetune(data_path="/data/train.jsonl", num_gpus=8, max_steps=1000)
    recipe.trainer.max_steps = 2000
    recipe.model.lora.enabled = True
    recipe.model.lora.rank = 16
    validate(recipe)
    task = loads(dumps(recipe))
    assert (task.trainer.max_steps, task.model.build().lora.rank) == (2000, 16)

    recipe = recipes.llama3_8b_pretrain(
        data_path="/data/corpus", tokenizer_path="/tokenizers/llama", num_nodes=16, num_gpus_per_node=8
    )
    recipe.parallelism.tensor_parallel = 2
    recipe.parallelism.pipeline_parallel = 4
    recipe.parallelism.data_parallel = 16
    validate(recipe)
    asked = resources_of(recipe)
    assert asked is not None and (asked.nodes, asked.gpus_per_node) == (16, 8)
    recipe.parallelism.data_parallel = 8
    with pytest.raises(ConfigError, match=r"data_parallel=8 does not fit: trainer.num_nodes=16"):
        resources_of(recipe)


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({}, (4, 8)),
        ({"num_gpus": 64}, (8, 8)),
        ({"num_gpus": 4}, (1, 4)),
        ({"num_nodes": 8}, (8, 8)),
        ({"num_gpus": 64, "num_nodes": 16}, (16, 4)),
        ({"num_gpus": 64, "num_gpus_per_node": 4}, (16, 4)),
        ({"num_nodes": 2, "num_gpus_per_node": 4}, (2, 4)),
    ],
)
def test_gpus_are_named_in_all_or_by_node(given: dict[str, int], place: tuple[int, int]) -> None:
    trainer = recipes.llama3_70b_pretrain(**given).trainer
    assert (trainer.num_nodes, trainer.devices) == place


@pytest.mark.parametrize(
    "given",
    [{"num_gpus": 12}, {"num_gpus": 0}, {"num_gpus": 8, "num_nodes": 2, "num_gpus_per_node": 8}],
)
def test_numbers_of_gpus_that_disagree_are_refused(given: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=rf"num_gpus={given['num_gpus']} are not num_nodes="):
        recipes.llama3_8b_pretrain(**given)


def test_another_kind_of_adapters_is_refused() -> None:
    with pytest.raises(ConfigError, match="peft='dora' is not one of 'lora', None"):
        recipes.llama3_8b_finetune(peft="dora")


@pytest.mark.parametrize("which", ALL)
def test_every_recipe_fits_gpus_of_80_gb(which: str) -> None:
    task = make(which)
    task.trainer.gpu_memory_gib = 79.1  # what torch finds on an H100 of 80 GB
    assert resources_of(task) is not None
    assert settled(run_of(task), 79.1 * GIB).share(79.1 * GIB) < 0.95


@pytest.mark.parametrize("kind", ["local", "slurm", "kubernetes"])
@pytest.mark.parametrize("which", ALL)
def test_every_recipe_dry_runs_on_every_executor(
    which: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    task = make(which)
    nodes = task.trainer.num_nodes
    executors: dict[str, Any] = {
        "local": run.LocalExecutor,
        "slurm": run.SlurmExecutor,
        "kubernetes": lambda: run.KubernetesExecutor(image="a/b:1"),
    }
    if kind == "local":
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(8 * nodes))))
    experiment = run.Experiment("x")
    experiment.add(task, executor=executors[kind]())
    text = experiment.dry_run()
    if kind == "slurm":
        assert f"#SBATCH --nodes={nodes}\n" in text
        assert "#SBATCH --ntasks-per-node=8\n#SBATCH --gpus-per-node=8\n" in text
    elif kind == "kubernetes":
        assert 'nvidia.com/gpu: "8"' in text or "nvidia.com/gpu: 8" in text
        assert nodes == 1 or f"completions: {nodes}\n" in text


@pytest.mark.parametrize("which", ALL)
def test_a_smoke_run_keeps_family_and_layout_and_shrinks_the_rest(which: str) -> None:
    task = make(which)
    before = task.build().keywords
    smoke(task)
    validate(task)
    after = task.build().keywords
    asked = resources_of(task)
    assert asked is not None and (asked.nodes, asked.gpus_per_node) == (1, 0)
    assert asked.ntasks_per_node <= 8
    for name in ("tensor_parallel", "pipeline_parallel", "virtual_pipeline", "context_parallel"):
        kept, was = (getattr(one["parallelism"], name) for one in (after, before))
        assert kept == min(was, 2)
    for name in ("activation", "normalization", "rotary_percent", "rope_theta"):
        assert getattr(after["model"], name) == getattr(before["model"], name)
    assert after["model"].lora.enabled == before["model"].lora.enabled
    assert bool(after["model"].num_experts) == bool(before["model"].num_experts)
    assert after["model"].num_parameters() < 500_000
    assert after["trainer"].max_steps == 3
