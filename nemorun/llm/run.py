"""What each rank of `pretrain` does once it has joined the others."""

from __future__ import annotations

import torch

from nemorun.llm.config import DataConfig, GPTConfig
from nemorun.llm.data import TextData
from nemorun.llm.generation import generate
from nemorun.llm.model import GPTModel
from nemorun.training.config import CheckpointConfig, LogConfig, OptimConfig, TrainerConfig
from nemorun.training.distributed import Ranks
from nemorun.training.progress import say
from nemorun.training.trainer import Trainer

_SAMPLE_TOKENS = 160


def train(
    ranks: Ranks,
    model: GPTConfig,
    trainer: TrainerConfig,
    data: DataConfig,
    optim: OptimConfig,
    checkpoint: CheckpointConfig,
    log: LogConfig,
    sample: str | None,
) -> dict[str, float]:
    """See `nemorun.llm.pretrain`, which has checked these."""
    seq_length = data.seq_length or model.seq_length
    training = Trainer(trainer, optim, checkpoint, log, ranks)
    if ranks.first:
        say(
            f"{model.num_parameters() / 1e6:,.1f} M parameters on {ranks.world_size} x {ranks.device.type}, "
            f"{trainer.strategy}, {training.config.precision}, "
            f"{data.global_batch_size} x {seq_length} tokens a step"
        )
    batches = TextData(data, seq_length, ranks)
    with torch.device("meta"):
        gpt = GPTModel(model)
    result = training.fit(gpt, batches)
    if sample is not None:
        text = generate(
            training.forward,
            sample.encode(),
            max_tokens=_SAMPLE_TOKENS,
            context=seq_length,
            seed=trainer.seed,
        )
        if ranks.first:
            say(f"--- the trained model goes on from {sample!r} ---\n{text}\n---")
    return {"step": training.step, **result}
