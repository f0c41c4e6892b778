"""How much memory of its GPU a training run takes at most, in bytes, before anything is started; torch-free.

A rank's memory is followed through a step by the moments at which it can be highest: the head, where the
logits are; the last blocks of the forward and the first of the backward pass, when all activations are there;
the backward pass's last block and the embedding, when all gradients are; the update; and the first weights,
which are drawn whole. The largest is the peak, of the stage where it is largest. What lives at each moment is
read from the code that runs: this package's, and torch 2.11's FSDP (`_fsdp_param_group.py` and
`_fsdp_collectives.py`), pipelining (`stage.py`, `schedules.py`) and compiler (`nemorun.llm.activations`).
It is what torch's allocator counts as allocated; `nemorun.llm.memory.OUTSIDE` is what a GPU holds besides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from nemorun.llm.activations import block_activations
from nemorun.llm.config import GPTConfig
from nemorun.llm.data.config import DataConfig, FinetuneDataConfig
from nemorun.llm.memory import Memory
from nemorun.llm.parameters import Unit, rank_parameters, shards_of
from nemorun.training.config import OptimConfig, ParallelismConfig, TrainerConfig

LOSS_ROWS = 8192
"""Rows whose logits are there at one time: `nemorun.training.loss._ROWS`, which a test compares."""


def peak_memory(
    model: GPTConfig,
    trainer: TrainerConfig,
    data: DataConfig | FinetuneDataConfig,
    optim: OptimConfig,
    parallelism: ParallelismConfig,
) -> Memory:
    """The peak of the rank that needs most, in a layout that has been checked."""
    stages = range(parallelism.pipeline_parallel)
    return max(
        (stage_memory(model, trainer, data, optim, parallelism, stage) for stage in stages),
        key=lambda memory: memory.total,
    )


def stage_memory(
    model: GPTConfig,
    trainer: TrainerConfig,
    data: DataConfig | FinetuneDataConfig,
    optim: OptimConfig,
    parallelism: ParallelismConfig,
    stage: int,
) -> Memory:
    """The peak of the ranks of one pipeline stage."""
    found = _Stage(model, trainer, data, optim, parallelism, stage)
    return replace(max(found.at_all_moments(), key=lambda memory: memory.total), stage=stage)


class _Stage:
    """What the ranks of a stage hold, and when."""

    def __init__(
        self,
        model: GPTConfig,
        trainer: TrainerConfig,
        data: DataConfig | FinetuneDataConfig,
        optim: OptimConfig,
        parallelism: ParallelismConfig,
        stage: int,
    ) -> None:
        self.model, self.optim = model, optim
        self.width = 4 if trainer.precision == "fp32" else 2
        self.parameters = rank_parameters(model, trainer, parallelism)
        self.keeps_gathered = self.parameters.wraps and not trainer.reshard_after_forward
        self.sums_whole = self.parameters.wraps and trainer.sync_each_micro_batch is False
        frozen = model.lora.enabled
        kept_in_float8 = (frozen and not self.parameters.wraps) or (self.sums_whole and not frozen)
        self.quantized = trainer.precision == "fp8-mixed" and kept_in_float8
        self.stages, self.pieces = parallelism.pipeline_parallel, parallelism.virtual_pipeline
        self.first, self.last = stage == 0, stage == self.stages - 1
        self.layers = model.num_layers // self.stages
        length = data.seq_length or model.seq_length
        self.tokens = data.rows * length // parallelism.context_parallel
        data_ranks = shards_of(trainer, parallelism)[0] // parallelism.context_parallel
        self.micro_batches = max(1, data.global_batch_size // (data.rows * data_ranks))
        self.vocabulary = model.vocab_size / parallelism.tensor_parallel
        sequence_ranks = parallelism.tensor_parallel if parallelism.splits_sequence else 1
        self.hidden = self.tokens / sequence_ranks * model.hidden_size * self.width
        """The hidden state that blocks and stages hand on."""
        block = block_activations(
            model, parallelism, self.tokens, self.width,
            casts_weights=not self.parameters.wraps and self.width < 4,
            float8=trainer.precision == "fp8-mixed",
        )  # fmt: skip
        recompute = trainer.recompute or "none"
        self.kept, self.working = block.kept[recompute], block.working[recompute]
        self.round = parallelism.round_size(self.micro_batches)
        in_flight = in_flight_pieces(parallelism, self.round, stage)
        self.activations = in_flight * self.layers / self.pieces * self.kept + self.hidden
        units = [*self.parameters.block * self.layers]
        units += [self.parameters.embedding] * self.first + [self.parameters.head] * self.last
        self.units = units
        self.always = self._always()
        shards = shards_of(trainer, parallelism)[1]
        on_one_node = shards * parallelism.tensor_parallel <= trainer.devices
        at_owners = on_one_node and self.stages == 1 and parallelism.expert_parallel == 1
        self.sent = self.width if at_owners else 4
        """Bytes of a gradient in the buffer that it is sent from (`nemorun.training.reducing`)."""
        self.received = self.width if at_owners and shards > 1 else 0

    def _always(self) -> Memory:
        """What lives from step to step, and a pipeline's buffers: each micro-batch of a round has its own."""
        parts = [(unit.trained / unit.shards, unit.frozen / unit.shards) for unit in self.units]
        trained, frozen = sum(part[0] for part in parts), sum(part[1] for part in parts)
        moment = 2 if self.optim.moments == "bf16" else 4
        moments = 2 * trained
        if self.optim.optimizer == "muon":  # one momentum where AdamW has two means
            blocks = sum(unit.trained / unit.shards for unit in self.parameters.block) * self.layers
            moments -= blocks
        pipeline = 0.0
        if self.stages > 1:
            # torch keeps a buffer for each state that arrives and each gradient that comes back, from step to
            # step (`args_recv_info`, `grad_recv_info`).
            arriving, returning = self.pieces - self.first, self.pieces - self.last
            pipeline = self.round * self.hidden * (arriving + returning)
        weights = 4 * trained + self.width * frozen
        if self.quantized:  # in float8, beside what it is made of
            weights += self.layers * self.parameters.matrices
        return Memory("", weights=weights, moments=moment * moments, pipeline=pipeline)

    def at_all_moments(self) -> Iterator[Memory]:
        yield self._first_weights()
        sums = self._gradient_sums(self.units)
        if self.stages > 1 and self.parameters.wraps:
            yield from self._gathered_pipeline()
            return
        if self.sums_whole:
            yield from self._with_whole_sums()
            return
        before = sums if self.micro_batches > 1 else 0.0
        everything = self._kept_open() + self._open(self.parameters.head) * self.last
        if before and self.keeps_gathered:  # with the first micro-batch, when there are no sums yet
            for moment in [*self._forward(sums), *self._backward(sums), *self._late(sums)]:
                yield replace(moment, gathered=everything)
            before = 0.0
        for moment in self._forward(before):
            yield replace(moment, gathered=moment.gathered + self._kept_open())
        for moment in self._backward(before):
            yield replace(moment, gathered=everything) if self.keeps_gathered else moment
        yield from self._late(sums)
        yield self._update(sums)

    def _with_whole_sums(self) -> Iterator[Memory]:
        """Gradients lie whole from step to step (`nemorun.training.summing`), where they are exchanged, too.
        Weights come with the first micro-batch and stay."""
        whole = sum(4 * unit.trained for unit in self.units)
        for moment in self._forward(whole):
            yield replace(moment, gathered=moment.gathered + self._kept_open())
        everything = self._kept_open() + self._open(self.parameters.head)
        block = self._in_block("the first block of the backward pass", self.activations, whole, ())
        # Experts' gradients are not added by the products that make them.
        own = self.width * max(
            0.0, sum(unit.trained for unit in self.parameters.block) - self.parameters.matrices
        )
        yield replace(block, gathered=everything, gradients=whole + own)
        yield self._update(whole)

    def _forward(self, before: float) -> Iterator[Memory]:
        """Moments when most activations are there; `before`: the sums of earlier micro-batches' gradients."""
        if self.last:
            yield from self._at_head(before)
        yield self._at_last_forward(before)

    def _late(self, sums: float) -> Iterator[Memory]:
        """Moments when most gradients are there."""
        yield from self._at_last_backward(sums)
        if self.first:
            yield from self._at_embedding(sums)

    def _first_weights(self) -> Memory:
        """Each parameter is drawn whole in float32 and cut from there (`nemorun.training.initialization`)."""
        drawn = 4 * self.parameters.drawn
        return Memory("first weights", weights=self.always.weights, drawn=drawn)

    def _at_head(self, before: float) -> Iterator[Memory]:
        """Forward: some rows' logits, and the head's gradient beside them, if it is not added to whole sums.
        Backward: that gradient scaled."""
        head, now = self.parameters.head, replace(self.always, activations=self.activations)
        table = self.vocabulary * self.model.hidden_size
        trained = 0 if self.model.lora.enabled or self.sums_whole else table
        logits = min(LOSS_ROWS, self.tokens) * self.vocabulary * self.width
        states = 2 * self.tokens * self.model.hidden_size * self.width
        cast = 0 if self.parameters.wraps or self.model.lora.enabled else table * self.width
        gathered = self._open(head) + head.bytes_exchanged(self.width) * self.parameters.wraps
        yield replace(
            now, moment="the head, forward", gradients=before, gathered=gathered,
            loss=logits + 4 * trained + states + cast,
        )  # fmt: skip
        yield replace(
            now, moment="the head, backward", gradients=before,
            gathered=self._open(head) + self._coming(self.parameters.block),
            loss=trained * (4 + 4 + self.width) + states,
        )  # fmt: skip

    def _at_last_forward(self, before: float) -> Memory:
        """A block is gathered, what it arrived in waits for the next copy, and the next block's comes, or the
        head's."""
        block, width = self.parameters.block, self.width
        sent = sum(unit.bytes_sent(width) for unit in block) * self.parameters.wraps
        coming = max(self._coming(block), self._coming([self.parameters.head]) if self.last else 0.0)
        return replace(
            self.always,
            moment="the last blocks of the forward pass",
            activations=self.activations - min(2, self.layers / self.pieces) * self.kept,
            gradients=before,
            gathered=sum(map(self._open, block)) + self._coming(block) + coming + sent,
        )

    def _backward(self, before: float) -> Iterator[Memory]:
        """All activations are there, and what is exchanged of the head's gradient; or one block's fewer, and
        what is exchanged of the gradient of that."""
        head, block = [self.parameters.head] * self.last, self.parameters.block
        own = self._gradient_sums(head)
        yield self._in_block(
            "the first block of the backward pass", self.activations, before or own, tuple(head)
        )
        if self.layers / self.pieces > 1:
            own += self._gradient_sums([*block])
            yield self._in_block(
                "the second block of the backward pass", self.activations - self.kept, before or own, block
            )

    def _at_last_backward(self, sums: float) -> Iterator[Memory]:
        """All gradients are there but the embedding's; the block before is exchanged still."""
        if self.micro_batches == 1 and self.first:
            sums -= self._gradient_sums([self.parameters.embedding])
        flight = self.activations - (self.layers / self.pieces - 1) * self.kept
        block = self.parameters.block
        own = 0.0 if self.micro_batches > 1 else self._gradient_sums([*block])
        yield self._in_block("the last block of the backward pass", flight, sums - own, block)
        yield replace(
            self.always, moment="the last block's gradients", activations=flight - self.kept,
            gradients=sums + self._reduced(block), gathered=self._coming([self.parameters.embedding]),
        )  # fmt: skip

    def _in_block(self, moment: str, activations: float, sums: float, behind: tuple[Unit, ...]) -> Memory:
        """A block's backward pass: it is gathered, the next one comes, the gradient behind is under way."""
        block, width = self.parameters.block, self.width
        gathered = sum(map(self._open, block)) + self._coming(block)
        sent = sum(unit.bytes_sent(width) for unit in block) * self.parameters.wraps
        exchanged = sum(self.sent * unit.trained for unit in behind) * self.parameters.wraps
        return replace(
            self.always, moment=moment, activations=activations, gradients=sums + exchanged,
            gathered=gathered + max(0.0, sent - self.working), working=self.working,
        )  # fmt: skip

    def _at_embedding(self, sums: float) -> Iterator[Memory]:
        table = self.parameters.embedding
        without = sums if self.micro_batches > 1 else sums - self._gradient_sums([table])
        if not self.parameters.wraps:
            # Its gradient is made in float32, as its weight is.
            yield replace(
                self.always, moment="the embedding's gradient", gradients=without + 4 * table.trained,
                activations=self.activations - self.layers / self.pieces * self.kept,
            )  # fmt: skip
            return
        behind = self.sent * sum(unit.trained for unit in self.parameters.block)
        own = table.trained * self.width
        yield replace(
            self.always, moment="the embedding's gradient", gradients=without + own + behind,
            gathered=self._open(table),
        )  # fmt: skip
        yield replace(self.always, moment="the embedding's gradient", gradients=sums + self._reduced([table]))

    def _update(self, sums: float) -> Memory:
        """AdamW changes in place. Muon works on whole matrices, in five steps of Newton and Schulz."""
        working = 0.0
        if self.optim.optimizer == "muon" and not self.model.lora.enabled:
            whole = self.parameters.largest
            # float32: gradient, old and new momentum of a part; whole before and after; bfloat16: y, its
            # product, their sum.
            working = 12 * whole / self.units[0].shards + 8 * whole + 3 * 2 * whole
        return replace(self.always, moment="the update", gradients=sums, working=working)

    def _gathered_pipeline(self) -> Iterator[Memory]:
        """FSDP in a pipeline: weights stay gathered and gradients whole, in float32, to the step's end."""
        gathered = sum(self._open(unit) for unit in self.units)
        whole = sum(4 * unit.trained for unit in self.units)
        largest = max(unit.size for unit in self.units) * self.width
        now = replace(self.always, gathered=gathered + largest, gradients=whole, activations=self.activations)
        if self.last:
            for at in self._at_head(whole):
                yield replace(at, gathered=gathered)
        yield replace(
            now, moment="a block of the backward pass", working=self.working,
            gradients=whole + self.width * sum(unit.trained for unit in self.parameters.block),
        )  # fmt: skip
        if self.first:
            own = self.width * self.parameters.embedding.trained
            yield replace(
                now, moment="the embedding's gradient", gradients=whole + own + own * 4 / self.width
            )
        exchanged = max(4 * unit.trained * (1 + 1 / unit.shards) for unit in self.units)
        yield replace(now, moment="the exchange of gradients", activations=0, gradients=whole + exchanged)

    def _gradient_sums(self, units: list[Unit]) -> float:
        return sum(4 * unit.trained / unit.shards for unit in units)

    def _reduced(self, units: tuple[Unit, ...] | list[Unit]) -> float:
        """What handing over a unit's gradients takes beside their sum: as computed and the buffer sent from;
        or this buffer, what others send, and its sum, which is added to that of other micro-batches.

        Without FSDP: what the backward pass gives, in float32, to be added.
        """
        arrives = 1 if self.micro_batches > 1 else 0
        if not self.parameters.wraps:
            return arrives * sum(4 * unit.trained for unit in units)
        return sum(
            unit.trained * (self.sent + max(self.width, self.received + arrives * 4 / unit.shards))
            for unit in units
        )

    def _open(self, unit: Unit) -> float:
        """A unit as it is computed with; without FSDP that is the weight itself."""
        return unit.bytes_gathered(self.width) if self.parameters.wraps else 0.0

    def _kept_open(self) -> float:
        """What else stays gathered from its forward to its backward pass, beside the head or a block."""
        if not self.keeps_gathered:
            return 0.0
        ends = self._open(self.parameters.embedding) if self.first else 0.0
        return self.layers * sum(map(self._open, self.parameters.block)) + ends

    def _coming(self, units: tuple[Unit, ...] | list[Unit]) -> float:
        """What is gathered ahead of the backward pass."""
        return sum(unit.bytes_exchanged(self.width) for unit in units) if self.parameters.wraps else 0.0


def in_flight_pieces(parallelism: ParallelismConfig, micro_batches: int, stage: int) -> int:
    """Forward passes of a piece that wait for their backward pass at most, in torch's schedules."""
    stages, pieces = parallelism.pipeline_parallel, parallelism.virtual_pipeline
    if stages == 1:
        return 1
    if parallelism.schedule == "1f1b":
        return min(stages - stage, micro_batches)
    of_a_round = micro_batches // max(1, micro_batches // stages)
    # Zero bubble: fewer begin ahead, but the weights' gradients wait for as many more.
    ahead = 2 * (stages - 1 - stage) if parallelism.schedule == "interleaved" else stages - 1
    return min((pieces - 1) * of_a_round + ahead + 1, micro_batches * pieces)
