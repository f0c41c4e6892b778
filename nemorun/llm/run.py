"""What each rank of `pretrain` and `finetune` does once it has joined the others."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from nemorun.llm.config import GPTConfig
from nemorun.llm.data import DataConfig, FinetuneData, FinetuneDataConfig, Prefetched, PretrainData
from nemorun.llm.fits import Run, refusal, warning
from nemorun.llm.huggingface import TensorFiles, check_base, read_model, write_adapter, write_model
from nemorun.llm.model import GPTModel
from nemorun.llm.sample import continued
from nemorun.llm.settling import settled
from nemorun.training.attention import kernel_name
from nemorun.training.config import (
    CheckpointConfig,
    LogConfig,
    OptimConfig,
    ParallelismConfig,
    TrainerConfig,
)
from nemorun.training.distributed import Ranks
from nemorun.training.errors import TrainingError
from nemorun.training.loop import Loop
from nemorun.training.metrics import results_folder, writes_tensorboard
from nemorun.training.parallel import compiles
from nemorun.training.progress import say
from nemorun.training.speed import gpu_memory

_SAMPLE_TOKENS = 160


def train(
    ranks: Ranks,
    model: GPTConfig,
    trainer: TrainerConfig,
    data: DataConfig | FinetuneDataConfig,
    optim: OptimConfig,
    parallelism: ParallelismConfig,
    checkpoint: CheckpointConfig,
    log: LogConfig,
    sample: str | None = None,
    base: str | Path | None = None,
    export: bool = False,
) -> dict[str, float]:
    """See `nemorun.llm.pretrain` and `nemorun.llm.finetune`, which have checked these."""
    seq_length = data.seq_length or model.seq_length
    training = Loop(trainer, optim, parallelism, checkpoint, log, ranks)
    layout = training.layout
    training.flops_per_token = (
        model.flops_per_token(seq_length),
        model.flops_per_token(seq_length, causal=True),
    )
    shown = say if ranks.first else _silent
    shown(
        f"model    {model.num_parameters() / 1e6:,.1f} M parameters, {model.num_layers} layers of "
        f"{model.hidden_size}\n"
        f"ranks    {ranks.world_size} x {ranks.device.type}, {layout.describe()}, {trainer.strategy}, "
        f"{training.config.precision}\n"
        f"kernels  {_kernels(model, data, seq_length, training)}"
    )
    run = settled(Run(model, training.config, data, optim, parallelism), _smallest_gpu(ranks))
    data, training.config = run.data, run.trainer
    if ranks.device.type == "cuda" and trainer.gpu_memory_gib is None:
        _check_memory(run, training, shown)
    text = _data(data, seq_length, model.vocab_size, training)
    where = f"results  {results_folder(log)}"
    if writes_tensorboard(log):
        where += f"\ncurves   tensorboard --logdir {shlex.quote(str(results_folder(log)))}"
    tokens = data.global_batch_size * seq_length
    once = "" if run.trainer.sync_each_micro_batch else ", gradients exchanged once a step"
    again = "" if run.trainer.recompute == "none" else f", recompute={run.trainer.recompute}"
    shown(
        f"data     {text}\n"
        f"train    {trainer.max_steps} steps of {data.global_batch_size} x {seq_length} tokens in "
        f"micro-batches of {data.rows}{once}{again}, {trainer.max_steps * tokens / 1e6:,.2f} M in all\n"
        f"{where}"
    )
    with contextlib.closing(Prefetched(text, data.prefetch)) as batches:
        result = training.fit(GPTModel(model), batches, _filling(base, model, shown), _origin(base, training))
    _export(training, model, base, results_folder(log), export, shown)
    whole = layout.stages == layout.context_ranks == 1
    if sample is not None and whole and isinstance(text, PretrainData) and text.is_bytes:
        text_of_sample = continued(
            training.forward,
            sample.encode(),
            max_tokens=_SAMPLE_TOKENS,
            context=seq_length,
            seed=trainer.seed,
        )
        shown(f"--- the trained model goes on from {sample!r} ---\n{text_of_sample}\n---")
    shown(where)
    return {"step": training.step, **result}


def _kernels(model: GPTConfig, data: DataConfig | FinetuneDataConfig, seq_length: int, training: Loop) -> str:
    """What was chosen for this device, so that a slow fallback is seen."""
    ranks, device = training.layout.context_ranks, training.ranks.device
    dtype = torch.float32 if training.config.precision == "fp32" else torch.bfloat16
    like = torch.empty((), dtype=dtype, device=device)
    query = like.expand(1, seq_length // ranks, model.num_attention_heads, model.head_dim)
    packed = data.packing if isinstance(data, FinetuneDataConfig) else data.reset_positions
    attention = f"a ring of {ranks} ranks" if ranks > 1 else kernel_name(query, packed)
    compiled = "compiled" if compiles(training.config, training.layout) else "not compiled"
    return f"attention by {attention}; blocks {compiled}"


def _smallest_gpu(ranks: Ranks) -> float | None:
    """Bytes of the smallest GPU of all ranks, or None: they are on the CPU."""
    if ranks.device.type != "cuda":
        return None
    (negative,) = ranks.max(-gpu_memory(ranks.device))
    return -negative


def _check_memory(run: Run, training: Loop, shown: Callable[[str], None]) -> None:
    """Judge the run by the GPUs that are here, while they are empty; all ranks stop if one must."""
    ranks, stage = training.ranks, training.layout.stage
    capacity = gpu_memory(ranks.device)
    shown(f"memory   about {run.memory().describe()}")
    problem = refusal(run, capacity, stage)
    if not ranks.all(problem is None):
        raise TrainingError(problem or "the run does not fit the GPU of another rank, which says why")
    if doubt := warning(run, capacity):
        shown(f"memory   {doubt}")


def _data(
    config: DataConfig | FinetuneDataConfig, seq_length: int, vocab_size: int, training: Loop
) -> PretrainData | FinetuneData:
    """This rank's share: ranks that work on one model together read the same."""
    layout = training.layout
    share = {"data_rank": layout.data_rank, "data_ranks": layout.data_ranks, "vocab_size": vocab_size}
    if isinstance(config, FinetuneDataConfig):
        return FinetuneData(config, seq_length, training.ranks, **share)
    return PretrainData(config, seq_length, training.ranks, **share)


def _filling(
    base: str | Path | None, model: GPTConfig, shown: Callable[[str], None]
) -> Callable[[Mapping[str, Tensor]], None] | None:
    """How a run that has no checkpoint yet gets the weights of `base`."""
    if base is None:
        return None

    def fill(parameters: Mapping[str, Tensor]) -> None:
        check_base(base, model)
        shown(f"base     {base}")
        read_model(base, parameters, model)

    return fill


def _origin(base: str | Path | None, training: Loop) -> str:
    """What the first weights are."""
    if base is not None:
        return f"base {TensorFiles(base).fingerprint()}"
    # a GPU draws other values from the same seed
    return f"seed {training.config.seed} on {training.ranks.device.type}"


def _export(
    training: Loop,
    model: GPTConfig,
    base: str | Path | None,
    folder: Path,
    export: bool,
    shown: Callable[[str], None],
) -> None:
    """Adapters always, being small; the whole model where that is asked for."""
    parameters = {name: one for piece in training.pieces for name, one in piece.named_parameters()}
    if model.lora.enabled:
        write_adapter(folder / "adapter", parameters, model, base=base, overwrite=True)
        shown(f"adapter  {folder / 'adapter'}")
    if export:
        write_model(folder / "model", parameters, model, tokenizer=base, overwrite=True)
        shown(f"model    {folder / 'model'}")


def _silent(text: str) -> None:
    """The other ranks say nothing."""
