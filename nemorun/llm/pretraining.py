"""`pretrain`: the target of pre-training recipes. Importing it imports no torch; calling it does."""

from __future__ import annotations

from nemorun.errors import ConfigError
from nemorun.job import Resources
from nemorun.llm.config import GPTConfig
from nemorun.llm.data.config import DataConfig
from nemorun.llm.resources import notes
from nemorun.llm.resources import resources as training_resources
from nemorun.llm.smoke import smoke
from nemorun.training.config import (
    CheckpointConfig,
    LogConfig,
    OptimConfig,
    ParallelismConfig,
    TrainerConfig,
)


def pretrain(
    model: GPTConfig,
    trainer: TrainerConfig,
    data: DataConfig = DataConfig(),  # noqa: B008 - only read
    optim: OptimConfig = OptimConfig(),  # noqa: B008
    parallelism: ParallelismConfig = ParallelismConfig(),  # noqa: B008
    checkpoint: CheckpointConfig = CheckpointConfig(),  # noqa: B008
    log: LogConfig = LogConfig(),  # noqa: B008
    sample: str | None = "def ",
    export: bool = False,
) -> dict[str, float]:
    """Train a language model from its first weights, or on from its newest checkpoint.

    Every rank calls it, as `nemorun run` and torchrun arrange; without either it trains on one rank.

    Args:
        model: Shape of the transformer.
        trainer: Steps, ranks, precision, strategy, intervals.
        data: The text and its batches.
        optim: Optimizer and learning rate.
        parallelism: How the ranks divide the work.
        checkpoint: When to save; a run whose folder holds a checkpoint goes on from it.
        log: Where metrics go.
        sample: Start of a text that the trained model continues at the end. None: no sample.
        export: At the end, write the model to `model` in the results, as a Hugging Face folder.

    Returns:
        The last step's `step`, `loss`, `val_loss`, `lr`, `grad_norm` and `tokens_per_second` (of all ranks).

    Raises:
        ConfigError: settings that do not fit together.
        TrainingError: the run cannot start or go on.
        SystemExit: with `nemorun.job.EXIT_RESUME` after SIGTERM or SIGUSR2, when the state is saved.
    """
    for config in (model, trainer, data, optim, parallelism, checkpoint):
        config.validate()
    resources(model, trainer, data, parallelism, optim)

    from nemorun.llm.run import train
    from nemorun.training.distributed import join

    with join(trainer) as ranks:
        return train(ranks, model, trainer, data, optim, parallelism, checkpoint, log, sample, export=export)


def resources(
    model: GPTConfig,
    trainer: TrainerConfig,
    data: DataConfig,
    parallelism: ParallelismConfig,
    optim: OptimConfig = OptimConfig(),  # noqa: B008 - only read
    **_: object,
) -> Resources:
    """As any training run's (`nemorun.llm.resources`), for a vocabulary that holds at least bytes."""
    found = training_resources(model, trainer, data, parallelism, optim)
    if model.vocab_size < 257:
        raise ConfigError(
            f"model.vocab_size={model.vocab_size} must be at least 257: byte-level text has so many tokens"
        )
    return found


# how the launcher finds the rule, and that it may warn the task before it ends it
pretrain.__nemorun_resources__ = resources  # type: ignore[attr-defined]  # attributes of a function
pretrain.__nemorun_notes__ = notes  # type: ignore[attr-defined]  # attributes of a function
pretrain.__nemorun_smoke__ = smoke  # type: ignore[attr-defined]  # attributes of a function
pretrain.__nemorun_resumable__ = True  # type: ignore[attr-defined]  # attributes of a function
