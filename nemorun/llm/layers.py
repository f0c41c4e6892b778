"""What blocks are made of: matrices with adapters, norms, rotary embeddings.

Shapes are written with B (sequences), S (tokens), D (hidden), H (query heads), G (key/value heads),
K (head width), F (feed-forward width), V (vocabulary) and R (rank of an adapter).
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from nemorun.llm.config import GPTConfig, LoraConfig, RopeScaling
from nemorun.training.adapted import Adapter, adapted_linear
from nemorun.training.fp8 import fits, scaled_gated, scaled_linear
from nemorun.training.gating import gated, gated_linear
from nemorun.training.norm import norm_beside
from nemorun.training.products import linear, trained_linear
from nemorun.training.tensor_parallel import local


class Linear(nn.Module):
    """x @ weight.T, with low-rank adapters where `lora` names one of its `targets`.

    Several matrices that read the same input stand in one weight: `pattern` says whose each `unit` of rows is
    and begins anew until the end. They share `lora_b` [out, R] row by row, and each has its own R rows of
    `lora_a` [targets x R, in].
    """

    float8_weight: Tensor | None
    float8_scale: Tensor | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        targets: tuple[str, ...],
        lora: LoraConfig,
        pattern: tuple[int, ...] = (0,),
        unit: int = 1,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.targets = targets
        self.lora = lora
        self.tensor_group: dist.ProcessGroup | None = None
        self.float8 = False
        """Whether the product with the weight is in float8; adapters' never is."""
        self.weight_sum: Tensor | None = None
        """Where the weight's gradient is added up, if not by autograd (`training.summing`)."""
        # The weight in float8, where it is kept (`fp8.quantize_frozen`, `fp8.QuantizedOnceAStep`). No state.
        self.register_buffer("float8_weight", None, persistent=False)
        self.register_buffer("float8_scale", None, persistent=False)
        self.places = [(pattern.index(t) * unit, pattern.count(t) * unit) for t in range(len(targets))]
        """Of each target, where its rows begin within the pattern, and how many they are: one run of rows."""
        self.period = len(pattern) * unit
        self.adapts = [lora.enabled and target in lora.targets for target in targets]
        self.adapted = any(self.adapts)
        if self.adapted:
            self.weight.requires_grad_(False)
            self.lora_a = nn.Parameter(torch.empty(len(targets) * lora.rank, inputs))
            self.lora_b = nn.Parameter(torch.empty(outputs, lora.rank))

    def forward(self, x: Tensor, largest: Tensor | None = None, more: Tensor | None = None) -> Tensor:
        """[..., in] -> [..., out], plus `more`, if there is any; x may be this tensor-parallel rank's part.

        `largest`: magnitudes whose greatest is the greatest in x, where they are known.
        """
        weight, adapter = local(self.weight), self._adapter(x)
        if self._in_float8(x, weight):
            y = scaled_linear(x, *self._float8(weight, x.dtype), adapter, largest, self.weight_sum)
        elif adapter is not None:
            y = adapted_linear(x, weight.to(x.dtype), adapter)
        elif torch.is_grad_enabled():
            return trained_linear(x, weight.to(x.dtype), self.weight_sum, more)
        else:
            y = linear(x, weight.to(x.dtype))
        return y if more is None else more + y

    def gated(self, x: Tensor, block: int) -> tuple[Tensor, Tensor | None]:
        """silu(gate) x up of the output, where they stand in turns of `block`; and its `largest`."""
        weight = local(self.weight)
        if not self._in_float8(x, weight):
            return gated(self(x), block), None
        weight, scale = self._float8(weight, x.dtype)
        return scaled_gated(x, weight, block, scale, self._adapter(x), self.weight_sum)

    def of_gate(self, both: Tensor, block: int, more: Tensor | None = None) -> Tensor:
        """Of silu(gate) x up, which stand in `both` [..., 2 x in] in turns of `block`; plus `more`."""
        weight = local(self.weight)
        if self.adapted or self.float8 or not (both.requires_grad and weight.requires_grad):
            return self(gated(both, block), more=more)
        return gated_linear(both, weight.to(both.dtype), block, self.weight_sum, more)

    def _in_float8(self, x: Tensor, weight: Tensor) -> bool:
        return self.float8 and fits(x, weight)

    def _float8(self, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """The weight in `dtype`; or, where it is kept in e4m3, that and its scale."""
        if self.float8_weight is None:
            return weight.to(dtype), None
        return self.float8_weight, self.float8_scale

    def _adapter(self, x: Tensor) -> Adapter | None:
        if not self.adapted:
            return None
        # What is not divided over tensor-parallel ranks gets a part of its gradient on each of them.
        a = local(self.lora_a, sum_over=self.tensor_group)
        b = self._placed(local(self.lora_b, sum_over=self.tensor_group).to(x.dtype))
        # The small matrix is scaled, so that neither the output nor its gradient has to be.
        a = (a * (self.lora.alpha / self.lora.rank)).to(x.dtype)
        drops = self.training and self.lora.dropout > 0
        return Adapter(a, b, F.dropout(x, self.lora.dropout) if drops else None)

    def merged(self) -> Tensor:
        """The weight [out, in] with the adapters added to it, in the weight's type."""
        if not self.adapted:
            return self.weight
        change = self._placed(self.lora_b.float()) @ self.lora_a.float()
        return (self.weight + change * (self.lora.alpha / self.lora.rank)).to(self.weight.dtype)

    def _placed(self, b: Tensor) -> Tensor:
        """[out, R] -> [out, targets x R]: each row at its own target's place, and 0 at the others."""
        if all(self.adapts) and len(self.targets) == 1:
            return b
        # Any tensor-parallel rank's share of the rows begins the pattern anew. Worked out where b is: a list
        # of rows would be copied to the device each time.
        row = torch.arange(len(b), device=b.device) % self.period
        owned = [
            (row >= first) & (row < first + count) & adapts
            for (first, count), adapts in zip(self.places, self.adapts, strict=True)
        ]
        return torch.cat([torch.where(own[:, None], b, 0.0) for own in owned], dim=1)


class Norm(nn.Module):
    """RMSNorm, or LayerNorm1p: LayerNorm with a bias, whose weight is stored less 1."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.weight = nn.Parameter(torch.empty(config.hidden_size))
        self.bias = (
            nn.Parameter(torch.empty(config.hidden_size)) if config.normalization == "layernorm1p" else None
        )
        self.sequence_group: dist.ProcessGroup | None = None
        """The ranks that each normalise only a part of the sequence."""
        self.weight_sum: Tensor | None = None
        """Where the weight's gradient is added up, if not by autograd (`training.summing`)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.beside(x)[1]

    def beside(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x as it is, and normalised. What goes on with this x has its gradient added by the norm's."""
        weight = local(self.weight, sum_over=self.sequence_group).to(x.dtype)
        if self.bias is None:
            return norm_beside(x, weight, self.eps, self.weight_sum)
        bias = local(self.bias, sum_over=self.sequence_group).to(x.dtype)
        return x, F.layer_norm(x, weight.shape, weight + 1, bias, self.eps)


def rotary(positions: Tensor, config: GPTConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines [..., rotary_dim / 2] in float32 at `positions` [...]."""
    width = config.rotary_dim
    channels = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32)
    frequencies = config.rope_theta ** (-channels / width)
    if config.rope_scaling:
        frequencies = _stretched(frequencies, config.rope_scaling)
    angles = positions.float()[..., None] * frequencies
    return angles.cos(), angles.sin()


def _stretched(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1's frequencies, as in Meta's `apply_scaling` and Hugging Face's `llama3` rope type."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = scaling.original_context * frequencies / (2 * math.pi)
    """How often each turns within the original context."""
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)
