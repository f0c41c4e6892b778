"""What each rank of `pretrain` does once it has joined the others."""

from __future__ import annotations

import contextlib
import shlex

from nemorun.llm.config import DataConfig, GPTConfig
from nemorun.llm.data import Prefetched, PretrainData
from nemorun.llm.generation import generate
from nemorun.llm.model import GPTModel
from nemorun.training.config import (
    CheckpointConfig,
    LogConfig,
    OptimConfig,
    ParallelismConfig,
    TrainerConfig,
)
from nemorun.training.distributed import Ranks
from nemorun.training.loop import Loop
from nemorun.training.metrics import results_folder, writes_tensorboard
from nemorun.training.progress import say

_SAMPLE_TOKENS = 160


def train(
    ranks: Ranks,
    model: GPTConfig,
    trainer: TrainerConfig,
    data: DataConfig,
    optim: OptimConfig,
    parallelism: ParallelismConfig,
    checkpoint: CheckpointConfig,
    log: LogConfig,
    sample: str | None,
) -> dict[str, float]:
    """See `nemorun.llm.pretrain`, which has checked these."""
    seq_length = data.seq_length or model.seq_length
    training = Loop(trainer, optim, parallelism, checkpoint, log, ranks)
    shown = say if ranks.first else _silent
    shown(
        f"model    {model.num_parameters() / 1e6:,.1f} M parameters, {model.num_layers} layers of "
        f"{model.hidden_size}\n"
        f"ranks    {ranks.world_size} x {ranks.device.type}, {training.layout.describe()}, {trainer.strategy}, "
        f"{training.config.precision}"
    )
    layout = training.layout
    text = PretrainData(
        data,
        seq_length,
        ranks,
        data_rank=layout.data_rank,
        data_ranks=layout.data_ranks,
        vocab_size=model.vocab_size,
    )
    where = f"results  {results_folder(log)}"
    if writes_tensorboard(log):
        where += f"\ncurves   tensorboard --logdir {shlex.quote(str(results_folder(log)))}"
    tokens = data.global_batch_size * seq_length
    shown(
        f"data     {text}\n"
        f"train    {trainer.max_steps} steps of {data.global_batch_size} x {seq_length} tokens, "
        f"{trainer.max_steps * tokens / 1e6:,.2f} M in all\n"
        f"{where}"
    )
    with contextlib.closing(Prefetched(text, data.prefetch)) as batches:
        result = training.fit(GPTModel(model), batches)
    whole = layout.stages == layout.context_ranks == 1
    if sample is not None and whole and text.is_bytes:
        continued = generate(
            training.forward,
            sample.encode(),
            max_tokens=_SAMPLE_TOKENS,
            context=seq_length,
            seed=trainer.seed,
        )
        shown(f"--- the trained model goes on from {sample!r} ---\n{continued}\n---")
    shown(where)
    return {"step": training.step, **result}


def _silent(text: str) -> None:
    """The other ranks say nothing."""
