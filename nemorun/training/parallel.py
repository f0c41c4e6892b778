"""A model divided over the ranks: its pieces, its weights, and how each block runs.

The order matters: pieces of the pipeline, tensor and expert parallelism, recomputation, compilation, shards.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from nemorun.training import adapted, grouped, rotary  # noqa: F401 - they register their operators
from nemorun.training.attention import ATTENTION_OPERATORS
from nemorun.training.compiling import HAS_TRITON
from nemorun.training.config import TrainerConfig
from nemorun.training.distributed import Ranks
from nemorun.training.fp8 import choose_matrices, require_float8
from nemorun.training.initialization import initialize, take_part
from nemorun.training.layout import Layout, submesh
from nemorun.training.model import TrainableModel
from nemorun.training.optimizer import part
from nemorun.training.progress import say
from nemorun.training.reducing import SumAtOwner, on_one_node
from nemorun.training.tensor_parallel import Region


def settle_precision(config: TrainerConfig, ranks: Ranks) -> TrainerConfig:
    """`config` with precision "auto" replaced by what suits the device; ranks must be of one kind.

    Raises ConfigError where the device does not have the precision.
    """
    if config.precision == "fp8-mixed":
        require_float8(ranks.device)
    if config.precision != "auto":
        return config
    cpu_info = Path("/proc/cpuinfo")
    flags = cpu_info.read_text().split() if cpu_info.exists() else []
    quick = ranks.device.type == "cuda" or "avx512_bf16" in flags or "amx_bf16" in flags
    return replace(config, precision="bf16-mixed" if quick else "fp32")


def parallelize(model: TrainableModel, config: TrainerConfig, layout: Layout) -> list[TrainableModel]:
    """This rank's pieces of `model`, divided and with weights: one, or several of a pipeline.

    A model on the meta device gets its first weights from the seed; values that it has already are kept.
    """
    if layout.ranks.first and layout.ranks.device.type == "cuda" and not HAS_TRITON:
        say("warning: Triton is not installed: blocks are not compiled and plain operators run, slower")
    given = None if next(model.parameters()).is_meta else dict(model.named_parameters())
    if layout.parallelism.async_tensor_parallel:
        _overlap_tensor_exchanges(layout)
    pieces = _pieces(model.to("meta") if given is None else _without_weights(model), layout)
    compiled = compiles(config, layout)
    unfit: list[str] = []  # matrices that float8 leaves out
    for piece in pieces:
        piece.dtype = torch.float32 if config.precision == "fp32" else torch.bfloat16
        for parameter in piece.parameters():
            if not parameter.requires_grad:  # what is not trained needs no float32
                parameter.data = parameter.data.to(piece.dtype)
        _divide_matrices(piece, layout)
        if config.precision == "fp8-mixed":
            unfit += choose_matrices(piece)
        for block in piece.blocks.values():
            block.forward = _recomputed(block.forward, config.recompute or "none", compiled)
            if compiled:
                # Rings, and experts on several ranks, exchange what no compiler follows.
                whole = not layout.context_group and not layout.expert_group
                block.forward = torch.compile(block.forward, fullgraph=whole)
        _shard(piece, config, layout)
        piece.to_empty(device=layout.ranks.device)
        if given is None:
            initialize(piece, config.seed)
        else:
            for name, parameter in piece.named_parameters():
                take_part(parameter, given[name].detach())
    if config.precision == "fp8-mixed":
        _say_what_is_float8(unfit, pieces, config, layout)
    return pieces


def compiles(config: TrainerConfig, layout: Layout) -> bool:
    if config.compile is not None:
        return config.compile
    return layout.ranks.device.type == "cuda" and HAS_TRITON


def _say_what_is_float8(
    unfit: list[str], pieces: list[TrainableModel], config: TrainerConfig, layout: Layout
) -> None:
    """The first rank says what stays in bfloat16, and why."""
    if not layout.ranks.first:
        return
    experts = " and experts" if any(piece.expert_layers() for piece in pieces) else ""
    say(f"float8   the blocks' matrices; the head, embeddings{experts} stay in bfloat16")
    if unfit:
        others = f" and {len(unfit) - 1} more stay" if len(unfit) > 1 else " stays"
        say(f"float8   {unfit[0]}{others} in bfloat16, too: the sides of a matrix must be multiples of 16")
    if layout.ranks.device.type == "cuda" and not compiles(config, layout):
        say("warning: trainer.precision=fp8-mixed is slower than bf16-mixed without trainer.compile")


def _overlap_tensor_exchanges(layout: Layout) -> None:
    """Let the compiler cut products into parts that run while other parts are exchanged (async TP)."""
    group = layout.tensor_group
    if group is None or layout.ranks.device.type != "cuda":
        return
    from torch.distributed._symmetric_memory import enable_symm_mem_for_group

    enable_symm_mem_for_group(group.group_name)
    torch._inductor.config._micro_pipeline_tp = True


def _without_weights(model: TrainableModel) -> TrainableModel:
    with torch.device("meta"):
        return copy.deepcopy(model).to("meta")


def _pieces(model: TrainableModel, layout: Layout) -> list[TrainableModel]:
    """This rank's pieces, in their order in the model. Of P ranks with V pieces each, rank p has p + k P."""
    count = layout.stages * layout.parallelism.virtual_pipeline
    if count == 1:
        return [model]
    names = list(model.blocks)
    size = len(names) // count
    pieces = []
    for index in range(layout.stage, count, layout.stages):
        piece = copy.deepcopy(model)
        piece.keep(names[index * size : (index + 1) * size], first=index == 0, last=index == count - 1)
        pieces.append(piece)
    return pieces


def _divide_matrices(model: TrainableModel, layout: Layout) -> None:
    """Tensor, context and expert parallelism: parameters become this rank's parts of whole ones."""
    region = Region(layout.tensor_group, layout.parallelism.splits_sequence)
    groups = {
        "tensor_group": region.group,
        "sequence_group": region.group if region.splits_sequence else None,
        "context_group": layout.context_group,
        "expert_group": layout.expert_group,
    }
    settings = {"region": region, "tensor_ranks": layout.tensor_ranks, **groups}
    for module in model.modules():
        for name, value in settings.items():
            if hasattr(module, name):
                setattr(module, name, value)
    for name, parameter in list(model.named_parameters()):
        experts = model.expert_dim(name) if layout.expert_group else None
        if region.group is None and experts is None:
            continue
        placements: list[Placement] = []
        names: list[str] = []
        if experts is not None:
            names.append("expert")
            placements.append(Shard(experts))
        if region.group is not None:
            names.append("tensor")
            dim = model.tensor_dim(name)
            placements.append(Replicate() if dim is None else Shard(dim))
        mesh = submesh(layout.weights if experts is None else layout.experts, *names)
        _replace(model, name, _divided(parameter, mesh, placements))


def _divided(parameter: nn.Parameter, mesh: DeviceMesh, placements: list[Placement]) -> nn.Parameter:
    """A parameter on the meta device as this rank's part of it."""
    shape = list(parameter.shape)
    for dim, placement in enumerate(placements):
        if isinstance(placement, Shard):
            shape[placement.dim] //= mesh.size(dim)
    part = torch.empty(shape, dtype=parameter.dtype, device="meta")
    whole = DTensor.from_local(part, mesh, placements, run_check=False)
    return nn.Parameter(whole, requires_grad=parameter.requires_grad)


def _replace(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, parameter)


def _recomputed(forward: Callable[..., Any], kind: str, compiled: bool) -> Callable[..., Any]:
    if kind == "none":
        return forward
    settings: dict[str, Any] = {"use_reentrant": False}
    if kind == "selective":
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_products)
    elif compiled:
        # torch 2.11's compiler would keep what is computed inside autograd functions, if not told of each.
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_nothing)
    return partial(checkpoint, forward, **settings)


#: What selective recomputation keeps: what takes long, and what other ranks would have to take part in.
_PRODUCTS = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._grouped_mm.default,
    torch.ops.aten._scaled_mm.default,
    torch.ops.nemorun.grouped_product.default,
    torch.ops.nemorun.product.default,
    torch.ops.nemorun.adapted_product.default,
    torch.ops.nemorun.scaled_adapted_product.default,
    torch.ops.nemorun.cast_whole_and_turned.default,
    torch.ops.nemorun.split_rotated.default,
    *ATTENTION_OPERATORS,
    torch.ops._c10d_functional.reduce_scatter_tensor.default,
}


def _keep_products(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    # The scale of a float8 tensor is one number, for which all of the tensor would be read again.
    scale = op == torch.ops.aten.amax.default and len(args) == 1
    return CheckpointPolicy.MUST_SAVE if op in _PRODUCTS or scale else CheckpointPolicy.PREFER_RECOMPUTE


def _keep_nothing(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.PREFER_RECOMPUTE


def _shard(model: TrainableModel, config: TrainerConfig, layout: Layout) -> None:
    """FSDP2: each unit is gathered for its forward and backward pass; copies are its replicas.

    Weights stay in float32, are gathered in the model's type, and gradients are summed in float32.
    """
    if not layout.shares_weights:
        return
    mesh = submesh(layout.weights, "replicate", "shard")
    # A pipeline adds its micro-batches' gradients up before they are exchanged, which wants float32.
    at_owners = layout.stages == 1 and layout.expert_group is None and on_one_node(mesh.get_group("shard"))
    settings: dict[str, Any] = {
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=model.dtype if model.dtype != torch.float32 else None,
            reduce_dtype=None if at_owners else torch.float32,
            cast_forward_inputs=False,
        ),
        # On the CPU the ranks share the memory that freeing a unit before its backward would save, and with
        # several micro-batches in a pipeline each would be gathered again.
        "reshard_after_forward": config.reshard_after_forward
        and layout.ranks.device.type != "cpu"
        and layout.stages == 1,
    }
    if layout.expert_group:
        _shard_experts(model, mesh, layout, settings)
    for block in model.blocks.values():
        fully_shard(block, mesh=mesh, **settings)
    before, after = model.ends()
    if before:
        fully_shard(before, mesh=mesh, **settings)
    if after:
        # Its backward pass comes right after its forward pass: freed, it would be gathered again at once.
        fully_shard(after, mesh=mesh, **{**settings, "reshard_after_forward": False})
    fully_shard(model, mesh=mesh, **settings)
    _gather_ahead(before[:1], list(model.blocks.values()), after[:1])
    summing = SumAtOwner()
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # The loss is divided by the valid tokens of all ranks: gradients are added up, not averaged.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
            if at_owners:
                module.set_custom_reduce_scatter(summing)


def _gather_ahead(before: list[nn.Module], blocks: list[nn.Module], after: list[nn.Module]) -> None:
    """The pass of each unit begins with ordering the weights of the one whose pass is next."""
    for unit, following in pairwise([*before, *blocks, *after]):
        assert isinstance(unit, FSDPModule) and isinstance(following, FSDPModule)
        unit.set_modules_to_forward_prefetch([following])
    for block, following in pairwise(blocks):
        assert isinstance(block, FSDPModule) and isinstance(following, FSDPModule)
        following.set_modules_to_backward_prefetch([block])


def _shard_experts(model: TrainableModel, mesh: DeviceMesh, layout: Layout, settings: dict[str, Any]) -> None:
    """Experts' weights are shared by fewer ranks than other weights: they are units of their own."""
    expert_mesh = submesh(layout.experts, "replicate", "shard")
    own = expert_mesh.size(-1)
    for layer in model.expert_layers():
        fully_shard(layer.router, mesh=mesh, **settings)
        # A rank may hold fewer experts than the ranks that are to share them.
        few = part(layer.gate_up).shape[0] < own
        dim = (lambda parameter: Shard(1)) if few else None
        assert isinstance(layer, nn.Module)
        fully_shard(layer, mesh=expert_mesh, shard_placement_fn=dim, **settings)
