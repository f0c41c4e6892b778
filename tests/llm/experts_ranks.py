"""Run by each of 4 gloo ranks: experts under every layout against one rank; prints what differs, as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.utils.checkpoint import checkpoint

from nemorun.llm.experts import Experts
from tests.llm.experts_reference import CONFIG, SCALE, Case, case, differences, load, naive

RANKS = 4
KINDS = ("plain", "unused", "elsewhere")


@dataclass(frozen=True)
class Layout:
    data: int = 1
    context: int = 1
    tensor: int = 1
    expert: int = 1
    dtensor: bool = False
    """Whether weights are DTensors, as the trainer makes them."""
    recompute: bool = False
    compile: bool = False


LAYOUTS = {
    "data4": Layout(data=4),
    "expert2": Layout(data=4, expert=2),
    "expert4": Layout(data=4, expert=4),
    "expert4_recomputed": Layout(data=4, expert=4, recompute=True),
    "expert2_compiled": Layout(data=4, expert=2, compile=True),
    "tensor2": Layout(data=2, tensor=2),
    "tensor4": Layout(tensor=4),
    "tensor2_expert2": Layout(data=2, tensor=2, expert=2),
    "tensor2_expert2_dtensor": Layout(data=2, tensor=2, expert=2, dtensor=True),
    "context2": Layout(data=2, context=2),
    "context2_expert4_recomputed": Layout(data=2, context=2, expert=4, recompute=True),
    "context2_tensor2_expert2": Layout(context=2, tensor=2, expert=2),
}


def run(layout: Layout, c: Case) -> dict[str, Tensor]:
    """This rank's part of the case, put together with the others' as if it came from one."""
    mesh = init_device_mesh(
        "cpu", (layout.data, layout.context, layout.tensor), mesh_dim_names=("data", "context", "tensor")
    )
    experts = init_device_mesh(
        "cpu",
        (RANKS // layout.tensor // layout.expert, layout.expert, layout.tensor),
        mesh_dim_names=("copy", "expert", "tensor"),
    )
    data, context, tensor = (mesh.get_local_rank(name) for name in ("data", "context", "tensor"))
    expert = experts.get_local_rank("expert")

    layer = load(Experts(CONFIG), c.weights)
    layer.tensor_ranks = layout.tensor
    layer.context_group = mesh.get_group("context") if layout.context > 1 else None
    layer.expert_group = experts.get_group("expert") if layout.expert > 1 else None
    own = {"gate_up": (0, 1), "down": (0, 2)}
    for name, (by_expert, by_tensor) in own.items():
        part = getattr(layer, name).detach().chunk(layout.expert, by_expert)[expert]
        part = part.chunk(layout.tensor, by_tensor)[tensor].clone()
        if layout.dtensor:
            placements = [Shard(by_expert), Shard(by_tensor)]
            part = DTensor.from_local(part, experts["expert", "tensor"], placements)
        setattr(layer, name, nn.Parameter(part))
    if layout.dtensor:
        layer.router.tensor_group = experts.get_group("tensor")
        whole = DTensor.from_local(layer.router.weight.detach(), experts["tensor"], [Replicate()])
        layer.router.weight = nn.Parameter(whole)

    def share(whole: Tensor) -> Tensor:
        return whole.chunk(layout.data, 0)[data].chunk(layout.context, 1)[context]

    x = share(c.x).clone().requires_grad_()
    layer.begin_step(torch.tensor(SCALE))
    call = torch.compile(layer.forward, backend="aot_eager") if layout.compile else layer.forward
    if layout.recompute:
        y = checkpoint(call, x, share(~c.valid), use_reentrant=False)
    else:
        y = call(x, share(~c.valid))
    y.backward(share(c.above))

    found = {"aux": layer.aux_loss, "tokens": layer.expert_tokens}
    router = layer.router.weight.grad
    if layout.dtensor:
        # It is summed over the tensor-parallel ranks here, and below once more.
        router = router.to_local() / layout.tensor
    found["router.weight"] = router
    for name, value in (("y", y.detach()), ("x", x.grad)):
        found[name] = torch.zeros_like(c.x)
        share(found[name]).copy_(value)
    for name, (by_expert, by_tensor) in own.items():
        found[name] = torch.zeros_like(c.weights[name])
        grad = getattr(layer, name).grad
        assert grad is not None
        part = found[name].chunk(layout.expert, by_expert)[expert].chunk(layout.tensor, by_tensor)[tensor]
        part.copy_(grad.to_local() if layout.dtensor else grad)
    for value in found.values():
        dist.all_reduce(value)
    return found


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found: dict[str, list[str]] = {}
    for kind in KINDS:
        c = case(kind)
        expected = naive(c)
        for name, layout in LAYOUTS.items():
            torch._dynamo.reset()
            found[f"{name}-{kind}"] = differences(run(layout, c), expected)
    if dist.get_rank() == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
