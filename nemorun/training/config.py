"""How a model is trained, as plain dataclasses: torch-free, so that the launcher can check them.

Each `validate()` checks its own fields; `check_layout` checks those that must fit together.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nemorun.errors import ConfigError

#: Share of the time in which a pipeline may run empty for the sake of smaller buffers.
_EMPTY = 0.05


def default_seed() -> int:
    """What `run.set_seed` was given for the task that this process runs, else 0."""
    return int(os.environ.get("NEMORUN_SEED", "0"))


Recompute = Literal["none", "selective", "full"]


@dataclass
class TrainerConfig:
    """How long, on what, and in which precision."""

    max_steps: int = 1000
    """Optimizer steps of the whole run; a resumed run counts on."""
    precision: Literal["bf16-mixed", "fp8-mixed", "fp32", "auto"] = "bf16-mixed"
    """bf16-mixed computes in bfloat16 and keeps weights, gradient sums and the optimizer in float32.
    fp8-mixed is bf16-mixed whose blocks' matrices are multiplied in float8: for GPUs since Ada and Hopper.
    auto: bf16-mixed on GPUs and on CPUs that multiply bfloat16, else fp32."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: a GPU for each rank where there are enough, else the CPU. gpu also asks the executor for GPUs."""
    devices: int = 1
    """Ranks on each node: one a GPU, or any number of processes on the CPU."""
    num_nodes: int = 1
    """Nodes."""
    strategy: Literal["fsdp", "ddp"] = "fsdp"
    """fsdp shards weights, gradients and optimizer over the data-parallel ranks; ddp keeps them whole on
    each. What lies between them, groups of sharding ranks, is `parallelism.replicate`."""
    reshard_after_forward: bool = True
    """fsdp: free a block's gathered weights after its forward pass, and gather them again for the backward
    pass. False keeps them, 2 bytes a parameter, up to the backward pass of a step's last micro-batch: what is
    gathered once a step would else be twice with each micro-batch."""
    sync_each_micro_batch: bool | None = None
    """Ranks exchange gradients with each micro-batch of a step, so that each keeps the sum of its own part
    only. False: once a step, and until then each adds up whole ones, 4 bytes a parameter. None: False where a
    step has several micro-batches, GPUs have room, and the layout is one for which that is built."""
    recompute: Recompute | None = None
    """What the backward pass computes again instead of keeping: nothing, all but matrix products and
    attention, or whole blocks. None: the least for which GPUs have room; nothing on the CPU, and for models
    whose memory is not known."""
    gpu_memory_gib: float | None = None
    """Memory of one GPU, against which a run is judged before it is submitted. None: it is judged in the job,
    by the GPU that is there, before any weight gets memory."""
    compile: bool | None = None
    """Compile each block. None: on GPUs."""
    deterministic: bool = False
    """Only kernels that give the same bits each time; slower."""
    on_nan: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is no number: stop with the batch saved, or leave the step out."""
    hang_timeout: float = 600.0
    """Seconds after which ranks that wait for each other are given up, and the one that hangs is named."""
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
        if self.gpu_memory_gib is not None and not self.gpu_memory_gib > 0:
            raise ConfigError(f"gpu_memory_gib={self.gpu_memory_gib} must be greater than 0")
        if not self.hang_timeout > 0:
            raise ConfigError(f"hang_timeout={self.hang_timeout} must be greater than 0")


@dataclass
class OptimConfig:
    """AdamW or Muon with warm-up, then a cosine down to `min_lr` or a constant rate."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon orthogonalises the steps of the blocks' matrices; all else takes AdamW."""

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
    moments: Literal["fp32", "bf16"] = "fp32"
    """What the running means are kept in; bf16 halves their memory."""
    momentum: float = 0.95
    """Muon's momentum."""
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
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum={self.momentum} must be at least 0 and less than 1")
        if not self.eps > 0:
            raise ConfigError(f"eps={self.eps} must be greater than 0")


@dataclass
class ParallelismConfig:
    """How the ranks divide the work: ranks = data x tensor x pipeline x context parallel.

    Expert parallelism takes its ranks from the data- and context-parallel ones.
    """

    data_parallel: int | None = None
    """Ranks that take different data. None: all that the other kinds leave."""
    tensor_parallel: int = 1
    """Ranks that share each matrix."""
    sequence_parallel: bool | None = None
    """Between the matrices, tensor-parallel ranks share the sequence instead of repeating each other's
    work. None: where tensor_parallel > 1."""
    async_tensor_parallel: bool = False
    """Overlap the exchange of tensor-parallel ranks with their products; needs compile, NVLink and
    sequence_parallel."""
    pipeline_parallel: int = 1
    """Ranks that share the layers."""
    virtual_pipeline: int = 1
    """Pieces of the model on each pipeline rank."""
    pipeline_schedule: Literal["1f1b", "interleaved", "zero-bubble"] | None = None
    """None: 1f1b, or interleaved where virtual_pipeline > 1. zero-bubble takes any virtual_pipeline."""
    context_parallel: int = 1
    """Ranks that share each sequence, by ring attention."""
    expert_parallel: int = 1
    """Ranks that share the experts."""
    replicate: int = 1
    """Groups of data-parallel ranks that each hold a whole sharded copy (HSDP). For fsdp only."""

    @property
    def schedule(self) -> str:
        return self.pipeline_schedule or ("interleaved" if self.virtual_pipeline > 1 else "1f1b")

    @property
    def splits_sequence(self) -> bool:
        """Whether tensor-parallel ranks share the sequence between matrices."""
        return self.tensor_parallel > 1 and self.sequence_parallel is not False

    @property
    def ranks_of_a_model(self) -> int:
        """Ranks that work on the same data together."""
        return self.tensor_parallel * self.pipeline_parallel * self.context_parallel

    def round_size(self, micro_batches: int) -> int:
        """How many micro-batches go through the pipeline together, one such round after the other.

        Each has buffers of its own. Between two rounds the pipeline runs empty, (stages - 1) / pieces of a
        rank times as long as one micro-batch takes; so a round is the shortest that makes that a small share.
        """
        stages = self.pipeline_parallel
        least = max(1, math.ceil((stages - 1) / (self.virtual_pipeline * _EMPTY)))
        fit = (n for n in range(least, micro_batches) if micro_batches % n == 0 and n % stages == 0)
        return next(fit, micro_batches)

    def data_ranks(self, world_size: int) -> int:
        """Data-parallel ranks among `world_size`, which `check_layout` has found to fit."""
        return world_size // self.ranks_of_a_model

    def validate(self) -> None:
        if self.data_parallel is not None:
            _at_least("data_parallel", self.data_parallel, 1)
        for name in (
            "tensor_parallel",
            "pipeline_parallel",
            "virtual_pipeline",
            "context_parallel",
            "expert_parallel",
            "replicate",
        ):
            _at_least(name, getattr(self, name), 1)
        if self.virtual_pipeline > 1 and self.pipeline_parallel == 1:
            raise ConfigError(f"virtual_pipeline={self.virtual_pipeline} needs pipeline_parallel > 1")
        if self.pipeline_schedule == "1f1b" and self.virtual_pipeline > 1:
            raise ConfigError(
                f"pipeline_schedule=1f1b has one piece a rank, not virtual_pipeline={self.virtual_pipeline}: "
                "take interleaved or zero-bubble, or virtual_pipeline=1"
            )
        if self.pipeline_schedule == "interleaved" and self.virtual_pipeline == 1:
            raise ConfigError("pipeline_schedule=interleaved needs virtual_pipeline > 1")
        if self.sequence_parallel and self.tensor_parallel == 1:
            raise ConfigError("sequence_parallel=True needs tensor_parallel > 1: it divides their work")
        if self.async_tensor_parallel and not self.splits_sequence:
            raise ConfigError(
                "async_tensor_parallel=True needs tensor_parallel > 1 and sequence_parallel other than False"
            )


@dataclass
class CheckpointConfig:
    """When to save, and how much to keep."""

    interval: int = 1000
    """Steps between two checkpoints. 0: only at the end, and when the run is told to stop."""
    last: bool = True
    """Save the state after the last step. False: for runs that nobody goes on from."""
    keep_last: int = 3
    """Checkpoints kept; older ones are deleted."""
    keep_every: int = 0
    """Those of every so many steps are kept for good, as milestones. 0: none."""
    asynchronous: bool = True
    """Write while training goes on, from a copy in the host's memory. False: training waits."""
    dir: str | Path | None = None
    """Where checkpoints are kept, and where a run looks for its own. None: `checkpoints` in the results."""

    def validate(self) -> None:
        _at_least("interval", self.interval, 0)
        _at_least("keep_last", self.keep_last, 1)
        _at_least("keep_every", self.keep_every, 0)


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
    ranks = f"trainer.num_nodes={trainer.num_nodes} x trainer.devices={trainer.devices} = {world} ranks"
    kinds = (
        f"tensor_parallel={parallelism.tensor_parallel} x pipeline_parallel={parallelism.pipeline_parallel} "
        f"x context_parallel={parallelism.context_parallel} = {parallelism.ranks_of_a_model}"
    )
    if world % parallelism.ranks_of_a_model:
        raise ConfigError(
            f"{ranks} cannot be divided by {kinds}. Change trainer.devices, trainer.num_nodes or parallelism"
        )
    data_ranks = parallelism.data_ranks(world)
    wanted = parallelism.data_parallel
    if wanted not in (None, data_ranks):
        raise ConfigError(
            f"parallelism.data_parallel={wanted} does not fit: {ranks}, and {kinds}, which leaves "
            f"{data_ranks}. Leave it out, or change one of the others"
        )
    _check_groups(trainer, parallelism, data_ranks)
    _check_sums(trainer, parallelism)
    if global_batch_size % (micro_batch_size * data_ranks):
        raise ConfigError(
            f"data.global_batch_size={global_batch_size} is not divisible by data.micro_batch_size="
            f"{micro_batch_size} x {data_ranks} data-parallel ranks = {micro_batch_size * data_ranks}"
        )
    stages = parallelism.pipeline_parallel
    micro_batches = global_batch_size // (micro_batch_size * data_ranks)
    if stages > 1 and micro_batches % stages:
        raise ConfigError(
            f"data.global_batch_size={global_batch_size} / (data.micro_batch_size={micro_batch_size} x "
            f"{data_ranks} data-parallel ranks) = {micro_batches} micro-batches, which must be a multiple of "
            f"pipeline_parallel={stages} to fill the pipeline"
        )


def _check_groups(trainer: TrainerConfig, parallelism: ParallelismConfig, data_ranks: int) -> None:
    """Groups inside the data-parallel ranks: replicas and experts."""
    if parallelism.replicate > 1 and trainer.strategy == "ddp":
        raise ConfigError(
            f"parallelism.replicate={parallelism.replicate} is for trainer.strategy=fsdp: with ddp each rank "
            "is a replica by itself"
        )
    if data_ranks % parallelism.replicate:
        raise ConfigError(
            f"parallelism.replicate={parallelism.replicate} does not divide {data_ranks} data-parallel ranks"
        )
    if trainer.strategy == "ddp" and parallelism.expert_parallel > 1:
        raise ConfigError(
            f"parallelism.expert_parallel={parallelism.expert_parallel} divides the weights of the experts, "
            "which trainer.strategy=ddp keeps whole: set trainer.strategy=fsdp"
        )
    sharing = data_ranks // parallelism.replicate * parallelism.context_parallel
    if sharing % parallelism.expert_parallel:
        raise ConfigError(
            f"parallelism.expert_parallel={parallelism.expert_parallel} does not divide the {sharing} ranks "
            f"that it is made of: {data_ranks} data-parallel / replicate={parallelism.replicate} x "
            f"context_parallel={parallelism.context_parallel}"
        )


def _check_sums(trainer: TrainerConfig, parallelism: ParallelismConfig) -> None:
    """Whole sums are for weights that are kept gathered and divided in one way."""
    if trainer.sync_each_micro_batch is not False:
        return
    if trainer.reshard_after_forward:
        raise ConfigError(
            "trainer.sync_each_micro_batch=False keeps gradients whole, and needs whole weights to be kept: "
            "set trainer.reshard_after_forward=False"
        )
    for name in ("tensor_parallel", "pipeline_parallel", "expert_parallel"):
        if (ranks := getattr(parallelism, name)) > 1:
            raise ConfigError(
                f"trainer.sync_each_micro_batch=False is not for parallelism.{name}={ranks}, only for "
                f"parallelism.{name}=1: set trainer.sync_each_micro_batch=True or leave it out"
            )


def _at_least(name: str, value: float, least: int) -> None:
    if not value >= least:
        raise ConfigError(f"{name}={value} must be at least {least}")
