"""The memory of a rank's steps without the memory: real code on fake tensors, every storage counted.

`fake_peak` runs the trainer's own pieces (`parallelize`, its passes, the optimizer) for two steps as rank 0
of a world that is only said to be there. Blocks are compiled as far as the partitioner, which says what is
kept for the backward pass; then each operator runs by itself. So what one fused kernel would not store counts
here, inside a block; of the loss and of AdamW with bfloat16 moments, which are one kernel each, only the
results are made. Attention is the CPU's kernel, which keeps what cuDNN's keeps. No pipelines, no rings and no
experts on several ranks.
"""

from __future__ import annotations

import contextlib
import operator
import weakref
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nemorun.llm.config import GPTConfig
from nemorun.llm.model import GPTModel
from nemorun.training import loss, optimizer
from nemorun.training.batch import Inputs
from nemorun.training.config import OptimConfig, ParallelismConfig, TrainerConfig
from nemorun.training.distributed import Ranks
from nemorun.training.layout import Layout
from nemorun.training.optim import build_optimizer
from nemorun.training.parallel import parallelize
from nemorun.training.pipeline import OnePiece
from nemorun.training.summing import WholeSums


class Storages(TorchDispatchMode):
    """Bytes of all storages that operators have made inside the mode, now and at most."""

    supports_higher_order_operators = True  # recomputation puts some around what draws numbers

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.at_peak = ""
        self._sizes: dict[int, int] = {}

    @classmethod
    def is_infra_mode(cls) -> bool:
        return True  # else nothing is compiled inside it

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, DTensor):  # whose own storage is no memory: it stands for the whole tensor
                leaf = leaf._local_tensor
            if isinstance(leaf, Tensor) and leaf.device.type != "meta":
                self._count(leaf, str(func))
        return result

    def _count(self, tensor: Tensor, what: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = 0
            weakref.finalize(storage, self._freed, key)
        self.resized(key, storage.nbytes(), what)

    def resized(self, key: int, size: int, what: str) -> None:
        if key in self._sizes:
            self.now += size - self._sizes[key]
            self._sizes[key] = size
        if self.now > self.peak:
            self.peak, self.at_peak = self.now, what

    def _freed(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


class Fake(NamedTuple):
    """Bytes at most, and those that a compiled block keeps for its backward pass beside its input."""

    peak: int
    kept: int


def fake_peak(
    model: GPTConfig,
    trainer: TrainerConfig,
    optim: OptimConfig,
    parallelism: ParallelismConfig,
    rows: int,
    length: int,
    micro_batches: int,
) -> Fake:
    """Two steps of a rank, its first weights included."""
    kept: list[int] = []
    torch._dynamo.reset()  # blocks of other shapes were compiled before
    world = trainer.num_nodes * trainer.devices
    trainer = replace(trainer, compile=True)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        layout = Layout(trainer, parallelism, Ranks(0, world, torch.device("cpu")))
        with contextlib.ExitStack() as stack:
            storages = _enter(stack, kept)
            piece = parallelize(GPTModel(model), trainer, layout)[0]
            if isinstance(piece, FSDPModule):
                piece.set_reshard_after_forward(trainer.reshard_after_forward)  # as on GPUs
            updates = build_optimizer([piece], optim)
            sums = WholeSums(piece) if trainer.sync_each_micro_batch is False else None
            passes = OnePiece(piece, keeps_gathered=not trainer.reshard_after_forward, sums=sums)
            for _ in range(2):
                batches = [_batch(rows, length) for _ in range(micro_batches)]
                passes.train(batches, 1.0)
                updates.step(divisor=torch.ones(()))
                updates.zero_grad()
            return Fake(storages.peak, max(kept))
    finally:
        dist.destroy_process_group()


def _batch(rows: int, length: int) -> tuple[Tensor, Inputs]:
    tokens = torch.zeros(rows, length, dtype=torch.int64)
    return tokens, Inputs(torch.zeros_like(tokens))


def _enter(stack: contextlib.ExitStack, kept: list[int]) -> Storages:
    """Stand-ins for what a GPU does; tensors become fake when a model gets its memory."""
    storages = Storages()
    to_empty, resize = nn.Module.to_empty, torch.UntypedStorage.resize_

    def into_fakes(module: nn.Module, **settings: Any) -> nn.Module:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(storages)
        return to_empty(module, **settings)

    def counted_resize(storage: torch.UntypedStorage, size: int) -> Any:  # by which FSDP frees and takes
        result = resize(storage, size)
        storages.resized(storage._cdata, size, "resize")
        return result

    for target, name, value in (
        (nn.Module, "to_empty", into_fakes),
        (nn.Module, "_apply", _without_swapping),
        (torch.UntypedStorage, "resize_", counted_resize),
        (torch, "compile", partial(torch.compile, backend=_partitioned(kept))),
        (loss, "_sums", lambda logits: logits.new_empty(2, len(logits), dtype=torch.float32).unbind()),
        (loss, "_to_shares", lambda *_: None),
        (loss, "add_product", lambda *_: None),
        (optimizer, "adamw", lambda *_, **__: None),
    ):
        stack.enter_context(mock.patch.object(target, name, value))
    return storages


def _without_swapping(module: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
    """Module._apply for fake tensors, which cannot be swapped."""
    for child in module.children():
        child._apply(fn)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = nn.Parameter(fn(parameter.detach()), parameter.requires_grad)
    return module


# --- what the partitioner keeps of one block ---

_VIEWS = {
    *("view", "permute", "alias", "unsqueeze", "squeeze", "select", "slice", "expand", "as_strided", "t"),
    *("transpose", "_unsafe_view", "reshape", "split", "split_with_sizes", "unbind", "detach"),
    # Inductor leaves out a copy that changes nothing (dropout of 0).
    "clone",
}


def _partitioned(saved: list[int]) -> Any:
    """A compiler that partitions as inductor does and runs the graphs as they are. `saved` gets the bytes
    that each forward graph keeps beside its inputs, each storage once."""

    def forward(graph: Any, inputs: Any) -> Any:
        saved.append(_kept(graph))
        return make_boxed_func(graph.forward)

    return aot_autograd(
        fw_compiler=forward,
        bw_compiler=lambda graph, inputs: make_boxed_func(graph.forward),
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )


def _kept(graph: Any) -> int:
    outputs = next(node for node in graph.graph.nodes if node.op == "output").args[0]
    found: dict[str, int] = {}
    for node in _storages(outputs[1:]):
        value = node.meta["val"]
        if node.op != "placeholder" and isinstance(value, Tensor) and isinstance(value.numel(), int):
            found[node.name] = value.numel() * value.element_size()
    return sum(found.values())


def _storages(nodes: Any) -> Iterator[Any]:
    """The nodes whose memory these are views of."""
    for node in nodes:
        if not isinstance(node, torch.fx.Node):
            continue
        while node.op == "call_function":
            source = node.args[0] if node.args else None
            of_views = node.target is operator.getitem and _name(source) in _VIEWS
            if not (of_views or _name(node) in _VIEWS):
                break
            node = source
        yield node


def _name(node: Any) -> str:
    return getattr(getattr(node, "target", None), "__name__", "").partition(".")[0]
