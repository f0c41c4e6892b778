"""What a training run asks an executor for; torch-free, so that the launcher can ask."""

from __future__ import annotations

from nemorun.errors import ConfigError
from nemorun.job import Resources
from nemorun.llm.config import GPTConfig
from nemorun.llm.data.config import DataConfig, FinetuneDataConfig
from nemorun.training.config import OptimConfig, ParallelismConfig, TrainerConfig, check_layout


def resources(
    model: GPTConfig,
    trainer: TrainerConfig,
    data: DataConfig | FinetuneDataConfig,
    parallelism: ParallelismConfig,
    optim: OptimConfig = OptimConfig(),  # noqa: B008 - only read
    **_: object,
) -> Resources:
    """The ranks and GPUs of a run; raises ConfigError where its settings do not fit together.

    A pure rule: `accelerator="gpu"` asks for one GPU a rank, and `auto` takes at run time what it finds.
    """
    check_layout(trainer, parallelism, data.global_batch_size, data.rows)
    model.check_parallelism(parallelism, data.seq_length)
    if data.seq_length is not None and data.seq_length > model.seq_length:
        raise ConfigError(
            f"data.seq_length={data.seq_length} is longer than model.seq_length={model.seq_length}"
        )
    if trainer.gpu_memory_gib is not None and trainer.accelerator != "cpu":
        from nemorun.llm.fits import Run, refusal
        from nemorun.llm.memory import GIB
        from nemorun.llm.settling import settled

        capacity = trainer.gpu_memory_gib * GIB
        run = settled(Run(model, trainer, data, optim, parallelism), capacity)
        if problem := refusal(run, capacity):
            raise ConfigError(problem)
    return Resources(
        nodes=trainer.num_nodes,
        ntasks_per_node=trainer.devices,
        gpus_per_node=trainer.devices if trainer.accelerator == "gpu" else 0,
    )


def notes(
    model: GPTConfig,
    trainer: TrainerConfig,
    data: DataConfig | FinetuneDataConfig,
    parallelism: ParallelismConfig,
    optim: OptimConfig = OptimConfig(),  # noqa: B008 - only read
    **_: object,
) -> list[str]:
    """The memory that a GPU needs, for `nemorun show`. Raises ConfigError where the layout is impossible."""
    from nemorun.llm.fits import Run
    from nemorun.llm.memory import GIB
    from nemorun.llm.settling import settled

    check_layout(trainer, parallelism, data.global_batch_size, data.rows)
    model.check_parallelism(parallelism, data.seq_length)
    if trainer.accelerator == "cpu":
        return []
    capacity = None if trainer.gpu_memory_gib is None else trainer.gpu_memory_gib * GIB
    run = settled(Run(model, trainer, data, optim, parallelism), capacity)
    memory = run.memory()
    chosen = [] if data.micro_batch_size is not None else [f"micro-batches of {run.data.rows}"]
    if trainer.recompute is None:
        chosen.append(f"recompute={run.trainer.recompute}")
    if trainer.sync_each_micro_batch is None and run.trainer.sync_each_micro_batch is False:
        chosen.append("gradients exchanged once a step")
    how = f" with {', '.join(chosen)}" if chosen else ""
    less = ""
    if capacity is None and trainer.recompute is None:
        less = ". GPUs without room for that recompute more: set trainer.gpu_memory_gib to what they have"
    return [f"memory: about {memory.describe()}{how}, at its peak: {memory.moment}{less}"]
