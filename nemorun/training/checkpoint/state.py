"""What makes up a run: its weights, its optimizers' numbers, its random state, all by names that are global.

A rank gives what it holds: its stages of a pipeline, its part of each tensor. The union over the ranks is the
whole, and torch.distributed.checkpoint finds in it what any other division needs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from nemorun.training.distributed import Ranks
from nemorun.training.errors import TrainingError

#: What compiling and recomputing put into names.
_WRAPPERS = re.compile(r"(_orig_mod|_checkpoint_wrapped_module)\.")


class RunState:
    """The tensors of this rank by name, not copied. Hyper-parameters are left to the configuration."""

    def __init__(
        self,
        models: Sequence[nn.Module],
        optimizers: Sequence[Optimizer],
        ranks: Ranks,
        trainable_only: bool,
        group: dist.ProcessGroup | None,
    ) -> None:
        self.models = models
        self.optimizers = optimizers
        self.ranks = ranks
        self.trainable_only = trainable_only
        self._group = group

    def kind(self) -> str:
        """Ranks of the same kind have the same random states."""
        return f"{self.ranks.world_size} x {self.ranks.device.type}"

    def weights(self) -> dict[str, Tensor]:
        """Every parameter, and each buffer that is to be kept."""
        found: dict[str, Tensor] = {}
        for model in self.models:
            inner = model.module if isinstance(model, DistributedDataParallel) else model
            # Not named_parameters(): asking for the state is what makes FSDP give its shards back.
            for name, value in inner.state_dict(keep_vars=True).items():
                clean = _WRAPPERS.sub("", name)
                if not isinstance(value, Tensor):
                    raise TrainingError(f"{clean} is a {type(value).__name__}: only tensors can be saved")
                if clean in found:
                    raise TrainingError(f"two pieces of the model on this rank both have a {clean}")
                found[clean] = value
        return found

    def saved(self) -> dict[str, Tensor]:
        """Name in a checkpoint -> tensor, for all that this rank saves."""
        weights = self.weights()
        # A buffer may change at any time, a weight only in an optimizer's step.
        tensors = {
            f"model.{name}": value.detach() if isinstance(value, nn.Parameter) else value.detach().clone()
            for name, value in weights.items()
            if self._saves(value)
        }
        for name, key, _, value in self._moments(weights):
            tensors[f"optimizer.{name}.{key}"] = (
                value.detach() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
            )
        return tensors | self._random()

    def load(self, read: Any, saved_names: set[str], same_kind: bool) -> None:
        """Fill this run in place: `read(tensors)` fills tensors by their names in the checkpoint."""
        self._make_moments()
        weights = self.weights()
        tensors = {
            f"model.{name}": value.detach()
            for name, value in weights.items()
            if self._saves(value) and f"model.{name}" in saved_names
        }
        numbers = {}
        for name, key, state, value in list(self._moments(weights)):
            full = f"optimizer.{name}.{key}"
            if full not in saved_names:
                state.clear()  # No step has been taken with it yet.
            elif isinstance(value, Tensor):
                tensors[full] = value.detach()
            else:
                tensors[full] = torch.zeros((), dtype=torch.float64)
                numbers[full] = (state, key, type(value))
        random = self._random() if same_kind else {}
        read(tensors | random)
        for full, (state, key, kind) in numbers.items():
            state[key] = kind(tensors[full].item())
        for name, value in random.items():
            (torch.cuda.set_rng_state if name.endswith(".cuda") else torch.set_rng_state)(value)

    def refuse_another_model(self, where: object, saved: dict[str, tuple[int, ...]], partial: bool) -> None:
        """Raise, on all ranks alike, where the names and shapes on all ranks together are not the saved ones.

        `partial`: the checkpoint leaves out what is not trained. torch would load what is in both, and say
        nothing of layers that only the checkpoint has.
        """
        here = {
            name: (tuple(value.shape), not self._saves(value) or (partial and _is_frozen(value)))
            for name, value in self.weights().items()
        }
        everywhere: list[dict[str, tuple[tuple[int, ...], bool]]] = [{}] * self.ranks.world_size
        dist.all_gather_object(everywhere, here, group=self._group)
        ours = {name: found for of_rank in everywhere for name, found in of_rank.items()}
        for name in [*ours, *saved]:
            shape, may_be_missing = ours.get(name, (None, False))
            if saved.get(name, shape if may_be_missing else None) != shape:
                raise TrainingError(
                    f"checkpoint {where} is of another model: {name} is {saved.get(name, 'missing')} there "
                    f"and {shape or 'missing'} here. Set the model as it was, or use another folder for the "
                    "results or for the checkpoints"
                )

    def _saves(self, value: Tensor) -> bool:
        return not (self.trainable_only and _is_frozen(value))

    def _moments(self, weights: dict[str, Tensor]) -> Iterator[tuple[str, str, dict[str, Any], Any]]:
        """(weight's name, key, the state it stands in, value) of all that the optimizers remember."""
        names = {id(value): name for name, value in reversed(weights.items())}
        for optimizer in self.optimizers:
            for parameter in _parameters(optimizer):
                state = optimizer.state.get(parameter, {})
                for key, value in list(state.items()):
                    if not isinstance(value, (Tensor, int, float)):
                        raise TrainingError(
                            f"the optimizer's {key} of {names[id(parameter)]} is a {type(value).__name__}: "
                            "only tensors and numbers can be saved"
                        )
                    yield names[id(parameter)], key, state, value

    @torch.no_grad()
    def _make_moments(self) -> None:
        """Have each optimizer make its state, by a step at rate 0 with gradients of 0."""
        for optimizer in self.optimizers:
            without = [p for p in _parameters(optimizer) if p.requires_grad and not optimizer.state.get(p)]
            if not without:
                continue
            rates = [group["lr"] for group in optimizer.param_groups]
            decays = [group.get("weight_decay", 0.0) for group in optimizer.param_groups]
            for parameter in without:
                parameter.grad = torch.zeros_like(parameter)
            for group in optimizer.param_groups:
                group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], Tensor) else 0.0
                group["weight_decay"] = 0.0
            optimizer.step()
            for group, rate, decay in zip(optimizer.param_groups, rates, decays, strict=True):
                group["lr"], group["weight_decay"] = rate, decay
            optimizer.zero_grad(set_to_none=True)

    def _random(self) -> dict[str, Tensor]:
        state = {f"random.{self.ranks.rank}.cpu": torch.get_rng_state()}
        if self.ranks.device.type == "cuda":
            state[f"random.{self.ranks.rank}.cuda"] = torch.cuda.get_rng_state()
        return state


def local(tensor: Tensor) -> Tensor:
    """This rank's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _is_frozen(value: Tensor) -> bool:
    return isinstance(value, nn.Parameter) and not value.requires_grad


def _parameters(optimizer: Optimizer) -> Iterable[nn.Parameter]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])
