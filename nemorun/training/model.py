"""What a model offers so that it can be divided over ranks without knowing of any."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn


class TrainableModel(nn.Module):
    """A module from tokens [B, S] (int64) to logits [B, S, V]."""

    @abstractmethod
    def units(self) -> list[nn.Module | list[nn.Module]]:
        """The parts that are gathered and freed together when the model is sharded, in order of use."""

    @abstractmethod
    def init_parameter(self, name: str, weight: Tensor, generator: torch.Generator) -> None:
        """Write the first values of the whole parameter `name` into `weight`, on any device."""
