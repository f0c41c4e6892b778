"""`pretrain`: the target of pre-training recipes. Importing it imports no torch; calling it does."""

from __future__ import annotations

from nemorun.errors import ConfigError
from nemorun.job import Resources
from nemorun.llm.config import GPTConfig
from nemorun.llm.data.config import DataConfig
from nemorun.llm.smoke import smoke
from nemorun.training.config import (
    CheckpointConfig,
    LogConfig,
    OptimConfig,
    ParallelismConfig,
    TrainerConfig,
    check_layout,
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
    resources(model, trainer, data, parallelism)

    from nemorun.llm.run import train
    from nemorun.training.distributed import join

    with join(trainer) as ranks:
        return train(ranks, model, trainer, data, optim, parallelism, checkpoint, log, sample, export=export)


def resources(
    model: GPTConfig,
    trainer: TrainerConfig,
    data: DataConfig,
    parallelism: ParallelismConfig,
    **_: object,
) -> Resources:
    """What `pretrain` asks an executor for; raises ConfigError where its settings do not fit together.

    A pure rule: `accelerator="gpu"` asks for one GPU a rank, and `auto` takes at run time what it finds.
    """
    check_layout(trainer, parallelism, data.global_batch_size, data.micro_batch_size)
    model.check_parallelism(parallelism, data.seq_length)
    if data.seq_length is not None and data.seq_length > model.seq_length:
        raise ConfigError(
            f"data.seq_length={data.seq_length} is longer than model.seq_length={model.seq_length}"
        )
    if model.vocab_size < 257:
        raise ConfigError(
            f"model.vocab_size={model.vocab_size} must be at least 257: byte-level text has so many tokens"
        )
    return Resources(
        nodes=trainer.num_nodes,
        ntasks_per_node=trainer.devices,
        gpus_per_node=trainer.devices if trainer.accelerator == "gpu" else 0,
    )


# how the launcher finds the rule, and that it may warn the task before it ends it
pretrain.__nemorun_resources__ = resources  # type: ignore[attr-defined]  # attributes of a function
pretrain.__nemorun_smoke__ = smoke  # type: ignore[attr-defined]  # attributes of a function
pretrain.__nemorun_resumable__ = True  # type: ignore[attr-defined]  # attributes of a function
