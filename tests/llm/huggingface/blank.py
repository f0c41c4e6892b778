"""A model whose weights are all no numbers, so that one that is not read shows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nemorun.llm import GPTConfig, GPTModel


@torch.no_grad()
def blank(config: GPTConfig) -> tuple[GPTModel, dict[str, Tensor]]:
    """The model and its parameters by their names."""
    model = GPTModel(config).materialize().eval()
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    for one in parameters.values():
        one.fill_(math.nan)
    return model, parameters
