"""What a model offers so that it can be divided over ranks from outside."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from nemorun.training.batch import Inputs


class ExpertLayer(Protocol):
    """A mixture of experts: its own parameters are the experts', and its router's are not."""

    @property
    def router(self) -> nn.Module: ...

    @property
    def gate_up(self) -> Tensor:
        """[E, ...]"""

    def begin_step(self, scale: Tensor) -> None:
        """Weigh the loss that keeps the load even by `scale` for each token, and count from zero."""

    @property
    def aux_loss(self) -> Tensor:
        """That loss, summed over this rank's tokens since `begin_step`, without `scale`."""


class TrainableModel(nn.Module):
    """From tokens to logits or to a summed loss, made on the meta device and cut up before it gets weights.

    Attributes:
        blocks: The layers by their number in the whole model, which a cut does not change.
        dtype: What it computes in; weights of another type are converted where they are used.
        first: Whether it begins with the embedding, and so takes tokens.
        last: Whether it ends with the head.
    """

    blocks: nn.ModuleDict
    dtype: torch.dtype
    first: bool = True
    last: bool = True

    @abstractmethod
    def forward(self, x: Tensor, inputs: Inputs | None = None) -> Tensor:
        """Tokens [B, S] -> logits [B, S, V], or the sum of the losses (float32) where `inputs` has labels.

        A piece without the embedding takes the hidden state [B, S, D] of the piece before it; one without
        the head returns its own.
        """

    @abstractmethod
    def keep(self, blocks: Iterable[str], first: bool, last: bool) -> None:
        """Become the piece with these blocks, and the embedding if it is the first, the head if the last."""

    @abstractmethod
    def hidden_shape(self, tokens: torch.Size) -> tuple[int, ...]:
        """The shape of the hidden state that one piece hands to the next, for tokens of this shape."""

    @abstractmethod
    def ends(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """What comes before the blocks and after them: each is gathered together when weights are sharded."""

    @abstractmethod
    def expert_layers(self) -> list[ExpertLayer]:
        """The mixtures of experts among its layers."""

    @abstractmethod
    def tensor_dim(self, name: str) -> int | None:
        """The dimension of parameter `name` that tensor-parallel ranks divide. None: it is whole on each."""

    @abstractmethod
    def expert_dim(self, name: str) -> int | None:
        """The dimension of parameter `name` that counts experts. None: it is no expert's."""

    @abstractmethod
    def init_parameter(self, name: str, weight: Tensor, generator: torch.Generator) -> None:
        """Write the first values of the whole parameter `name` into `weight`, on any device."""
