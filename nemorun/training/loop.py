"""The loop: read, forward, backward, step; validate, log and save at their intervals; stop when told to."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from nemorun.job import EXIT_RESUME
from nemorun.training.batch import Batch, Inputs, shared_out
from nemorun.training.checkpoint import Checkpointer
from nemorun.training.collecting import collected_by_hand
from nemorun.training.config import (
    CheckpointConfig,
    LogConfig,
    OptimConfig,
    ParallelismConfig,
    TrainerConfig,
)
from nemorun.training.distributed import Ranks
from nemorun.training.errors import TrainingError
from nemorun.training.fp8 import QuantizedOnceAStep, quantize_frozen
from nemorun.training.layout import Layout
from nemorun.training.loss import IGNORE
from nemorun.training.metrics import Metrics, results_folder
from nemorun.training.model import TrainableModel
from nemorun.training.nan import NanGuard
from nemorun.training.optim import build_optimizer, gradient_norm, learning_rate
from nemorun.training.parallel import parallelize, settle_precision
from nemorun.training.pipeline import Micro, OnePiece, Passes, Pipeline
from nemorun.training.progress import Clock, say, step_line
from nemorun.training.speed import peak_memory_gib, speed_of
from nemorun.training.spikes import LossSpikes
from nemorun.training.summing import WholeSums
from nemorun.training.watchdog import Watchdog


class Batches(Protocol):
    """The data of one data-parallel rank. Every such rank must get the same number of micro-batches."""

    def next_step(self) -> list[Batch]:
        """The micro-batches of the next optimizer step."""

    def validation(self, global_batches: int) -> list[Batch]:
        """The same micro-batches at each call; none where there is nothing to validate on."""

    def state(self) -> dict[str, Any]:
        """The position, as JSON can hold it and equal on all ranks."""

    def restore(self, state: dict[str, Any]) -> None: ...


class Loop:
    """Trains one model. Every rank makes one and calls `fit`."""

    def __init__(
        self,
        config: TrainerConfig,
        optim: OptimConfig,
        parallelism: ParallelismConfig,
        checkpoint: CheckpointConfig,
        log: LogConfig,
        ranks: Ranks,
    ) -> None:
        self.config = settle_precision(config, ranks)
        self.layout = Layout(config, parallelism, ranks)
        self.optim = optim
        self.checkpoint = checkpoint
        self.log = log
        self.ranks = ranks
        self.step = 0
        self.tokens = 0
        """Tokens trained on so far, over all ranks and attempts."""
        self.flops_per_token: tuple[float, float] | None = None
        """Of training, attention counted whole and as causal. None: no MFU is given."""
        self._told_to_stop = False

    def fit(
        self,
        model: TrainableModel,
        batches: Batches,
        fill: Callable[[Mapping[str, Tensor]], None] | None = None,
        origin: str = "",
    ) -> dict[str, float]:
        """Train `model` from its newest checkpoint, else from the weights it has or the seed's, to the end.

        `fill` may give first weights instead: it gets this rank's parameters, or parts of them, by name.
        Frozen weights are in no checkpoint: a resumed run gets them as the first one did. `origin` says what
        they are, and a checkpoint of adapters to others is refused.

        Returns the last metrics: `loss`, `val_loss` where there is one, and others. The model is then in
        `self.pieces`, divided over the ranks. Raises SystemExit(EXIT_RESUME) after SIGTERM or SIGUSR2, with
        the step finished and saved; TrainingError where the loss is no number or the last save fails.
        """
        # Dropout differs between ranks with different tokens, and only between them.
        layout = self.layout
        place = (layout.data_rank * layout.context_ranks + layout.context_rank) * layout.stages + layout.stage
        torch.manual_seed(self.config.seed + place)
        if self.config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is not, without this
            torch.use_deterministic_algorithms(True)
        frozen = any(not parameter.requires_grad for parameter in model.parameters())
        self.origin = origin if frozen else ""
        self.pieces = parallelize(model, self.config, layout)
        self.passes: Passes = (
            Pipeline(self.pieces, layout)
            if layout.stages > 1
            else OnePiece(
                self.pieces[0],
                keeps_gathered=not self.config.reshard_after_forward,
                sums=WholeSums(self.pieces[0]) if self._sums_whole else None,
            )
        )
        self.optimizer = build_optimizer(self.pieces, self.optim)
        folder = Path(self.checkpoint.dir or results_folder(self.log) / "checkpoints").absolute()
        self.checkpointer = Checkpointer(
            folder, self.checkpoint, self.pieces, self.optimizer, self.ranks, trainable_only=frozen
        )
        state = self.checkpointer.restore()
        if fill and (frozen or not state):
            parameters = (item for piece in self.pieces for item in piece.named_parameters())
            # of a resumed run, what is frozen: the rest has been restored
            fill({name: one for name, one in parameters if not (state and one.requires_grad)})
        if state:
            self._go_on(state, batches, folder)
        if self.config.precision == "fp8-mixed" and not layout.shares_weights:
            for piece in self.pieces:  # those that ranks share are gathered, and quantized, at each use
                quantize_frozen(piece)
        self.quantized = None
        if self.config.precision == "fp8-mixed" and self._sums_whole:
            self.quantized = QuantizedOnceAStep(self.pieces[0])
        self.metrics = self._open_metrics()
        results = results_folder(self.log)
        self.nan_guard = NanGuard(self.config.on_nan, self.ranks, results, saves=layout.speaks_for_data)
        self.spikes = LossSpikes()
        self.watchdog = Watchdog(self.ranks, self.config.hang_timeout, results / "hang")
        try:
            with self._stop_signals(), self.watchdog, collected_by_hand() as collect:
                return self._loop(batches, collect)
        finally:
            self.checkpointer.close()
            if self.metrics:
                self.metrics.close()

    @property
    def _sums_whole(self) -> bool:
        return self.layout.shares_weights and self.config.sync_each_micro_batch is False

    def _go_on(self, state: dict[str, Any], batches: Batches, folder: Path) -> None:
        if (was := state.get("origin", self.origin)) != self.origin:
            raise TrainingError(
                f"the checkpoints in {folder} are of adapters to other frozen weights ({was}) than those of "
                f"this run ({self.origin}). Name the base that they were trained with, or another folder for "
                "the results or for the checkpoints"
            )
        self.step, self.tokens = state["step"], state["tokens"]
        batches.restore(state["data"])
        self._say(f"goes on from step {self.step}: {folder}")

    def _loop(self, batches: Batches, collect: Callable[[int], None]) -> dict[str, float]:
        end = self.config.max_steps
        if self.step >= end:
            self._say(f"nothing left to train: step {self.step} of {end} is done")
            return self._validate(batches)  # It was written down when the step was done.
        clock = self.clock = Clock(self.step, self.tokens)
        flops = self.flops_per_token or (0.0, 0.0)
        speed = speed_of(self.ranks.device, self.ranks.world_size, *flops, first=self.ranks.first)
        saved = False
        values: dict[str, float] = {}
        while True:
            result = self._train_step(batches)
            collect(self.step)
            if 0 < self.checkpoint.interval < end:
                self.checkpointer.prepare()  # the optimizer has its moments now
            done = self.step == end
            stop = result.told_to_stop and not done
            saves = stop or (done and self.checkpoint.last) or _due(self.step, self.checkpoint.interval)
            # Before each save, too: a checkpoint must not hold what came of a loss that is no number.
            if done or saves or self.step == 1 or _due(self.step, self.config.log_interval):
                values = self._numbers(result) | speed.numbers(clock.lap(self.step, self.tokens))
                values["data_wait"] = clock.data_wait
                (values["peak_memory_gib"],) = self.ranks.max(peak_memory_gib(self.ranks.device))
                if saved:
                    values["checkpoint_stall"] = self.checkpointer.stall()
                    saved = False
                self._say(step_line(self.step, end, values, clock.left(end)))
                self._write(**values)
            with clock.paused():
                validates = done or (not stop and _due(self.step, self.config.val_interval))
                if validates and (found := self._validate(batches)):
                    values |= found
                    self._write(**found)
                if saves:
                    saved = True
                    self._save(batches, needed=done or stop)
            if stop:
                self._say(f"was told to stop: step {self.step} is saved, and the run can go on from there")
                raise SystemExit(EXIT_RESUME)
            if done:
                return values

    def _train_step(self, batches: Batches) -> _StepResult:
        self.watchdog.at("data", self.step + 1)
        with self.clock.waiting():
            micro_batches = batches.next_step()
        self.watchdog.at("forward and backward", self.step + 1)
        # One exchange for both: all ranks stop after the same step, or none does.
        valid, present, told_to_stop = self.ranks.sum(*self._counted(micro_batches), self._told_to_stop)
        self._balance(present)
        loss_sum = self.passes.train(self._shared_out(micro_batches), 1 / max(valid, 1))
        self.step += 1
        self.tokens += int(valid)
        norm = self._optimize(micro_batches)
        return _StepResult(loss_sum, norm, valid, self.optimizer.param_groups[0]["lr"], bool(told_to_stop))

    def _balance(self, tokens: float) -> None:
        """Let experts add the loss that keeps their load even: a mean over all tokens without padding."""
        layers = [layer for piece in self.pieces for layer in piece.expert_layers()]
        scale = torch.full((), 1 / max(tokens, 1), device=self.ranks.device)
        for layer in layers:
            layer.begin_step(scale)

    def _optimize(self, micro_batches: Sequence[Batch]) -> Tensor:
        """Clip the gradient, let the optimizer step, and return the gradient's norm before clipping."""
        self.watchdog.at("update", self.step)
        rate = learning_rate(self.step, self.optim, self.config.max_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        parameters = [p for piece in self.pieces for p in piece.parameters()]
        norm = gradient_norm(parameters, self.ranks.world_size // self.layout.stages, self.ranks.device)
        limit = self.optim.grad_clip
        divisor = (norm / limit).clamp(min=1.0) if limit else None
        skip = self.nan_guard.watch(self.step, norm, micro_batches)
        self.optimizer.step(divisor=divisor, skip=skip)
        if self.quantized:
            self.quantized.expire()
        self.optimizer.zero_grad()
        return norm

    def _counted(self, micro_batches: Sequence[Batch]) -> tuple[int, int]:
        """Tokens with a label, and all without padding, on one rank of those that read the same data."""
        if not self.layout.speaks_for_data:
            return 0, 0
        valid = sum(int((batch.labels != IGNORE).sum()) for batch in micro_batches)
        padding = sum(int(batch.padding.sum()) for batch in micro_batches if batch.padding is not None)
        return valid, sum(batch.tokens.numel() for batch in micro_batches) - padding

    def _shared_out(self, micro_batches: Sequence[Batch]) -> list[Micro]:
        return [shared_out(batch, self.layout) for batch in micro_batches]

    def _total(self, loss_sum: Tensor) -> float:
        """A loss over all ranks, each part of it once."""
        return self.ranks.sum(loss_sum.item() if self.layout.has_loss else 0.0)[0]

    @torch.no_grad()
    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, S] -> logits [B, S, V] on this rank's device; without a pipeline or divided sequences.

        Every rank must call it.
        """
        return self.pieces[0](tokens.to(self.ranks.device), Inputs())

    def _validate(self, batches: Batches) -> dict[str, float]:
        micro_batches = batches.validation(self.config.val_batches)
        if not micro_batches:
            return {}
        self.watchdog.at("validation", self.step)
        for piece in self.pieces:
            piece.eval()
        total = self._total(self.passes.evaluate(self._shared_out(micro_batches)))
        for piece in self.pieces:
            piece.train()
        loss = total / self.ranks.sum(*self._counted(micro_batches))[0]
        self._say(f"step {self.step}: validation loss {loss:.4f}")
        return {"val_loss": loss}

    def _numbers(self, result: _StepResult) -> dict[str, float]:
        """Fetch the step's numbers from the device, the same on every rank."""
        self.watchdog.at("log", self.step)
        left_out = self.nan_guard.report()
        loss = self._total(result.loss_sum) / max(result.valid, 1)
        norm = result.grad_norm.item()
        if not math.isfinite(loss) and self.step not in left_out:
            raise TrainingError(
                f"stopped: at step {self.step} the loss is {loss} and the gradient's norm {norm}. "
                "The last checkpoint is from before; a lower optim.lr or a longer optim.warmup_steps may help"
            )
        if (spike := self.spikes.notice(self.step, loss)) and self.ranks.first:
            say(spike)
        return {"loss": loss, "lr": result.lr, "grad_norm": norm}

    def _save(self, batches: Batches, needed: bool) -> None:
        self.watchdog.at("checkpoint", self.step, patience=6)
        state = {"tokens": self.tokens, "data": batches.state(), "origin": self.origin}
        self.checkpointer.save(self.step, state, needed=needed)

    @contextlib.contextmanager
    def _stop_signals(self) -> Iterator[None]:
        """SIGTERM and SIGUSR2 (Slurm's warning before a time limit) end the run after the step under way."""

        def stop(signum: int, frame: object) -> None:
            self._told_to_stop = True

        if threading.current_thread() is not threading.main_thread():
            yield  # Signals belong to the main thread; from another one nothing can be arranged.
            return
        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR2)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _open_metrics(self) -> Metrics | None:
        """The first rank's metrics; all ranks fail with a sentence where the results cannot be written."""
        metrics = problem = None
        if self.ranks.first:
            try:
                metrics = Metrics(self.log, self.step)
            except OSError as error:
                problem = error
        if not self.ranks.all(problem is None):
            raise TrainingError(
                f"the results' folder {results_folder(self.log)} cannot be written: {problem or 'see rank 0'}"
            ) from problem
        return metrics

    def _say(self, text: str) -> None:
        if self.ranks.first:
            say(text)

    def _write(self, **values: float) -> None:
        if self.metrics:
            self.metrics.write(self.step, **values)


@dataclass(frozen=True)
class _StepResult:
    """What a step left; tensors are on the device and are read only when they are shown."""

    loss_sum: Tensor
    """Sum over this rank's valid tokens, where the model ends here."""
    grad_norm: Tensor
    valid: float
    """Valid tokens of the global batch."""
    lr: float
    told_to_stop: bool


def _due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0
