"""AdamW and Muon, each rank on its own parts of the parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from nemorun.training.compiling import fused
from nemorun.training.config import OptimConfig

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration (Jordan et al. 2024, "Muon")."""

_LARGE = 2**22
"""Numbers in a parameter for which a kernel of its own is worth its start."""


class Optimizer(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019); groups with `orthogonal` take Muon.

    It runs as torch's fused kernel; on GPUs, for large parameters, as one compiled kernel for each: torch's
    writes the divided gradients back there, for which nobody asks, a quarter more time.

    `step` takes what can be done in the same pass over memory: a divisor of all gradients (which clips them)
    and whether to leave the step out.
    """

    def __init__(self, groups: list[dict[str, Any]], config: OptimConfig) -> None:
        super().__init__(groups, {"lr": config.lr, "weight_decay": 0.0, "orthogonal": False})
        self.config = config
        self.moments = torch.bfloat16 if config.moments == "bf16" else torch.float32

    @torch.no_grad()
    def step(  # type: ignore[override]  # a closure is not for us
        self,
        closure: Callable[[], float] | None = None,
        divisor: Tensor | None = None,
        skip: Tensor | None = None,
    ) -> None:
        """`divisor` and `skip` (1 or 0) are float32 scalars on the parameters' device."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters and group["orthogonal"]:
                self._muon(parameters, group, divisor, skip)
            elif parameters:
                self._adamw(parameters, group, divisor, skip)

    def _adamw(
        self, parameters: list[Any], group: dict[str, Any], divisor: Tensor | None, skip: Tensor | None
    ) -> None:
        states = [self._state(p, "exp_avg", "exp_avg_sq") for p in parameters]
        steps = [s["step"] for s in states]
        torch._foreach_add_(steps, 1)
        of_each = [
            (part(p), part(p.grad), part(state["exp_avg"]), part(state["exp_avg_sq"]), state["step"])
            for p, state in zip(parameters, states, strict=True)
        ]
        settings = {
            "lr": group["lr"],
            "beta1": self.config.betas[0],
            "beta2": self.config.betas[1],
            "eps": self.config.eps,
            "weight_decay": group["weight_decay"],
        }
        together = [tensors for tensors in of_each if self._leaves_to_torch(tensors[0])]
        if together:
            values, gradients, means, squares, counts = map(list, zip(*together, strict=True))
            torch._fused_adamw_(
                values,
                gradients,
                means,
                squares,
                [],
                counts,
                **settings,
                amsgrad=False,
                maximize=False,
                grad_scale=divisor,
                found_inf=skip,
            )
        lr = torch.tensor(settings.pop("lr"))  # a tensor, so that another rate compiles nothing anew
        for tensors in of_each:
            if not self._leaves_to_torch(tensors[0]):
                adamw(*tensors, lr=lr, divisor=divisor, skip=skip, **settings)
        if skip is not None:
            torch._foreach_add_(steps, skip, alpha=-1)  # a step that was left out does not count

    def _leaves_to_torch(self, p: Tensor) -> bool:
        return self.moments == torch.float32 and (p.device.type != "cuda" or p.numel() < _LARGE)

    def _muon(
        self, parameters: list[Any], group: dict[str, Any], divisor: Tensor | None, skip: Tensor | None
    ) -> None:
        """Muon as scaled by Liu et al. 2025 ("Muon is scalable"), so that AdamW's rate and decay fit it.

        Each rank gathers and orthogonalises every matrix of its layers: simple, and dear where many ranks
        share them.
        """
        for p in parameters:
            momentum = self._state(p, "momentum")["momentum"]
            gradient = part(p.grad) if divisor is None else part(p.grad) / divisor
            old = part(momentum).clone()
            part(momentum).mul_(self.config.momentum).add_(gradient)
            ahead = like(p, gradient + self.config.momentum * part(momentum))
            whole = ahead.full_tensor() if isinstance(ahead, DTensor) else ahead
            change = orthogonalised(whole) * 0.2 * max(whole.shape[-2:]) ** 0.5
            if isinstance(p, DTensor):
                change = distribute_tensor(change, p.device_mesh, p.placements, src_data_rank=None).to_local()
            new = part(p) * (1 - group["lr"] * group["weight_decay"]) - group["lr"] * change
            if skip is not None:  # chosen, not multiplied by 0, which would leave what is no number
                new = torch.where(skip > 0, part(p), new)
                part(momentum).copy_(torch.where(skip > 0, old, part(momentum)))
            part(p).copy_(new)

    def _state(self, p: Any, *names: str) -> dict[str, Any]:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), device=part(p).device)
            state |= {name: torch.zeros_like(p, dtype=self.moments) for name in names}
        return state


def part(tensor: Any) -> Tensor:
    """This rank's part of a parameter, its gradient or its state."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(p: Any, local: Tensor) -> Any:
    """A rank's part of something shaped as parameter `p` is, as what `p` is."""
    if not isinstance(p, DTensor):
        return local
    return DTensor.from_local(
        local, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride()
    )


@fused(dynamic=True)
def adamw(
    p: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    step: Tensor,
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    divisor: Tensor | None,
    skip: Tensor | None,
) -> None:
    """One step with moments of any type, computed in float32."""
    g = gradient.float() if divisor is None else gradient.float() / divisor
    m = torch.lerp(mean.float(), g, 1 - beta1)
    v = torch.lerp(square.float(), g * g, 1 - beta2)
    root = (v / (1 - beta2**step)).sqrt() + eps
    new = p * (1 - lr * weight_decay) - lr * (m / (1 - beta1**step)) / root
    keep = torch.zeros((), device=p.device) if skip is None else skip
    p.copy_(torch.where(keep > 0, p, new))
    mean.copy_(torch.where(keep > 0, mean, m))
    square.copy_(torch.where(keep > 0, square, v))


def orthogonalised(x: Tensor, steps: int = 5) -> Tensor:
    """Nearly U V^T of each matrix x = U S V^T [..., rows, columns], by Newton-Schulz (bf16 on GPUs)."""
    a, b, c = _NEWTON_SCHULZ
    turned = x.shape[-2] > x.shape[-1]
    y = x.mT if turned else x
    y = y.bfloat16() if x.device.type == "cuda" else y.float()
    y = y / (y.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = y @ y.mT
        y = a * y + (b * gram + c * gram @ gram) @ y
    return (y.mT if turned else y).to(x.dtype)
