"""How a model is trained, as plain dataclasses: torch-free, so that the launcher can check them.

Each `validate()` checks its own fields; `check_layout` checks those that must fit together.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nemorun.errors import ConfigError


def default_seed() -> int:
    """What `run.set_seed` was given for the task that this process runs, else 0."""
    return int(os.environ.get("NEMORUN_SEED", "0"))


@dataclass
class TrainerConfig:
    """How long, on what, and in which precision."""

    max_steps: int = 1000
    """Optimizer steps of the whole run; a resumed run counts on."""
    precision: Literal["bf16-mixed", "fp32", "auto"] = "bf16-mixed"
    """bf16-mixed computes in bfloat16 and keeps weights, gradient sums and the optimizer in float32.
    auto: bf16-mixed on GPUs and on CPUs that multiply bfloat16, else fp32."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: a GPU for each rank where there are enough, else the CPU. gpu also asks the executor for GPUs."""
    devices: int = 1
    """Ranks on each node: one a GPU, or any number of processes on the CPU."""
    num_nodes: int = 1
    """Nodes."""
    strategy: Literal["fsdp", "ddp"] = "fsdp"
    """fsdp shards weights, gradients and optimizer over the ranks; ddp keeps them whole on each."""
    seed: int = field(default_factory=default_seed)
    """Seed of all that is random but the order of the data. Default: what `run.set_seed` got, else 0."""
    val_interval: int = 0
    """Steps between two validations. 0: only at the end."""
    val_batches: int = 8
    """Global batches of one validation. 0: no validation."""
    log_interval: int = 10
    """Steps between two lines of progress."""

    def validate(self) -> None:
        for name in ("max_steps", "devices", "num_nodes", "log_interval"):
            _at_least(name, getattr(self, name), 1)
        for name in ("val_interval", "val_batches", "seed"):
            _at_least(name, getattr(self, name), 0)


@dataclass
class OptimConfig:
    """AdamW with warm-up, then a cosine down to `min_lr` or a constant rate."""

    lr: float = 3e-4
    """Highest learning rate."""
    min_lr: float | None = None
    """Learning rate at the end of the cosine. None: a tenth of `lr`."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What follows the warm-up."""
    warmup_steps: int = 2000
    """Steps in which the rate rises linearly from 0 to `lr`."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the running means of the gradient and of its square."""
    eps: float = 1e-5
    """Added to the root of the second mean."""
    weight_decay: float = 0.1
    """Decay of matrices and embeddings; norms have none."""
    grad_clip: float = 1.0
    """Largest norm of the whole gradient. 0: no clipping."""

    def validate(self) -> None:
        if not self.lr > 0:
            raise ConfigError(f"lr={self.lr} must be greater than 0")
        if self.min_lr is not None and not 0 <= self.min_lr <= self.lr:
            raise ConfigError(f"min_lr={self.min_lr} must be between 0 and lr={self.lr}")
        for name in ("warmup_steps", "weight_decay", "grad_clip"):
            _at_least(name, getattr(self, name), 0)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas={self.betas} must each be at least 0 and less than 1")
        if not self.eps > 0:
            raise ConfigError(f"eps={self.eps} must be greater than 0")


@dataclass
class ParallelismConfig:
    """How the ranks divide the work. Only data parallelism is there yet; the rest must be 1."""

    data_parallel: int | None = None
    """Ranks that take different data. None: all that the other kinds leave."""
    tensor_parallel: int = 1
    """Ranks that share each matrix."""
    pipeline_parallel: int = 1
    """Ranks that share the layers."""
    context_parallel: int = 1
    """Ranks that share each sequence."""
    expert_parallel: int = 1
    """Ranks that share the experts."""

    def validate(self) -> None:
        if self.data_parallel is not None:
            _at_least("data_parallel", self.data_parallel, 1)
        for name in ("tensor_parallel", "pipeline_parallel", "context_parallel", "expert_parallel"):
            if getattr(self, name) != 1:
                raise ConfigError(
                    f"{name}={getattr(self, name)} is not there yet: only data parallelism is. "
                    f"Set {name}=1; the ranks divide the data and, with trainer.strategy=fsdp, the weights"
                )


@dataclass
class CheckpointConfig:
    """When to save, and how much to keep."""

    interval: int = 1000
    """Steps between two checkpoints. 0: only at the end, and when the run is told to stop."""
    keep_last: int = 3
    """Checkpoints kept; older ones are deleted."""
    dir: str | Path | None = None
    """Where checkpoints are kept, and where a run looks for its own. None: `checkpoints` in the results."""

    def validate(self) -> None:
        _at_least("interval", self.interval, 0)
        _at_least("keep_last", self.keep_last, 1)


@dataclass
class LogConfig:
    """Where metrics go: always to the log and to `metrics.jsonl`."""

    dir: str | Path | None = None
    """The results' folder. None: $NEMORUN_RESULTS_DIR, else `./results`."""
    tensorboard: bool | None = None
    """Write TensorBoard events. None: yes, unless $NEMORUN_TENSORBOARD is 0."""


def check_layout(
    trainer: TrainerConfig, parallelism: ParallelismConfig, global_batch_size: int, micro_batch_size: int
) -> None:
    """The ranks, the parallelism and the batch must fit together. Raises ConfigError with the arithmetic."""
    world = trainer.num_nodes * trainer.devices
    wanted = parallelism.data_parallel
    if wanted is not None and wanted != world:
        raise ConfigError(
            f"parallelism.data_parallel={wanted} does not fit: trainer.num_nodes={trainer.num_nodes} x "
            f"trainer.devices={trainer.devices} are {world} ranks. Leave it out, or change one of the others"
        )
    if global_batch_size % (micro_batch_size * world):
        raise ConfigError(
            f"data.global_batch_size={global_batch_size} is not divisible by data.micro_batch_size="
            f"{micro_batch_size} x {world} data-parallel ranks = {micro_batch_size * world}"
        )


def _at_least(name: str, value: float, least: int) -> None:
    if not value >= least:
        raise ConfigError(f"{name}={value} must be at least {least}")
