"""`finetune`: the target of fine-tuning recipes. Importing it imports no torch; calling it does."""

from __future__ import annotations

from pathlib import Path

from nemorun.llm.config import GPTConfig
from nemorun.llm.data.config import FinetuneDataConfig
from nemorun.llm.resources import notes, resources
from nemorun.llm.smoke import smoke, with_examples
from nemorun.training.config import (
    CheckpointConfig,
    LogConfig,
    OptimConfig,
    ParallelismConfig,
    TrainerConfig,
)


def finetune(
    model: GPTConfig,
    trainer: TrainerConfig,
    data: FinetuneDataConfig,
    optim: OptimConfig = OptimConfig(),  # noqa: B008 - only read
    parallelism: ParallelismConfig = ParallelismConfig(),  # noqa: B008
    checkpoint: CheckpointConfig = CheckpointConfig(),  # noqa: B008
    log: LogConfig = LogConfig(),  # noqa: B008
    base: str | Path | None = None,
    export: bool = False,
) -> dict[str, float]:
    """Train a language model on examples: all of its weights, or adapters where `model.lora.enabled`.

    Every rank calls it, as `nemorun run` and torchrun arrange; without either it trains on one rank.

    Args:
        model: Shape of the transformer, and its adapters.
        trainer: Steps, ranks, precision, strategy, intervals.
        data: The examples and their batches.
        optim: Optimizer and learning rate.
        parallelism: How the ranks divide the work.
        checkpoint: When to save; a run whose folder holds a checkpoint goes on from it.
        log: Where metrics go.
        base: A Hugging Face folder (config.json and .safetensors) whose weights the first step starts from.
            None: first weights by `trainer.seed`.
        export: At the end, write the whole model, with its adapters merged, to `model` in the results, as a
            Hugging Face folder. Adapters alone are always written, to `adapter`, as PEFT does it.

    Returns:
        The last step's `step`, `loss`, `val_loss`, `lr`, `grad_norm` and `tokens_per_second` (of all ranks).

    Raises:
        ConfigError: settings that do not fit together, or a base of another shape.
        TrainingError: the run cannot start or go on.
        SystemExit: with `nemorun.job.EXIT_RESUME` after SIGTERM or SIGUSR2, when the state is saved.
    """
    for config in (model, trainer, data, optim, parallelism, checkpoint):
        config.validate()
    resources(model, trainer, data, parallelism, optim)

    from nemorun.llm.run import train
    from nemorun.training.distributed import join

    data = with_examples(data)
    with join(trainer) as ranks:
        return train(
            ranks, model, trainer, data, optim, parallelism, checkpoint, log, base=base, export=export
        )


# how the launcher finds the rules, and that it may warn the task before it ends it
finetune.__nemorun_resources__ = resources  # type: ignore[attr-defined]  # attributes of a function
finetune.__nemorun_notes__ = notes  # type: ignore[attr-defined]  # attributes of a function
finetune.__nemorun_smoke__ = smoke  # type: ignore[attr-defined]
finetune.__nemorun_resumable__ = True  # type: ignore[attr-defined]
