"""How well a device is used: tokens a second and GPU, MFU, the most memory taken.

MFU is the model's FLOPs (6 for each parameter that multiplies a token, and attention's), without what is
computed twice, over what the data sheet says of dense bfloat16. Two conventions are about: `mfu` counts
attention as if it were not causal, as PaLM, Megatron, NeMo and torchtitan do; `mfu_causal` counts what is
computed only. fp8 products are faster than the peak that is divided by, as others publish it, too.
"""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass

import torch

from nemorun.training.progress import say

#: Dense bfloat16 FLOP/s by data sheet; the first entry that a device's name contains counts.
PEAK_FLOPS = {
    "B300": 2250e12,
    "B200": 2250e12,
    "GB200": 2500e12,
    "H200": 989.4e12,
    "GH200": 989.4e12,
    "H100 NVL": 835.5e12,
    "H100 PCIe": 756.4e12,
    "H100": 989.4e12,
    "H800": 989.4e12,
    "H20": 148e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362.05e12,
    "L40": 181.05e12,
    "L4": 121e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "A10G": 70e12,
    "A10": 125e12,
    "RTX 6000 Ada": 364.2e12,
    "RTX 5090": 209.5e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
    "T4": 65e12,
}


def peak_flops(device_name: str) -> float | None:
    """Dense bfloat16 FLOP/s of a device; None where it is not known."""
    matching = [name for name in PEAK_FLOPS if name in device_name]
    return PEAK_FLOPS[max(matching, key=len)] if matching else None


@dataclass(frozen=True)
class Speed:
    """Turns tokens a second into what can be compared with other runs."""

    ranks: int
    flops_per_token: float
    """Of training, attention counted whole; `GPTConfig.flops_per_token(sequence)`."""
    flops_per_token_causal: float
    peak: float | None
    """FLOP/s of one device. None: no MFU."""

    def numbers(self, tokens_per_second: float) -> dict[str, float]:
        each = tokens_per_second / self.ranks
        found = {"tokens_per_second": tokens_per_second, "tokens_per_second_per_gpu": each}
        if self.peak and self.flops_per_token:
            found["mfu"] = each * self.flops_per_token / self.peak
            found["mfu_causal"] = each * self.flops_per_token_causal / self.peak
        return found


def speed_of(
    device: torch.device, ranks: int, flops_per_token: float, flops_per_token_causal: float, first: bool
) -> Speed:
    """The speed on this device; of a GPU that is not known, the first rank says that there is no MFU."""
    peak = None
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        peak = peak_flops(name)
        if peak is None and first:
            say(f"no MFU is given: the peak of {name!r} is not known")
    return Speed(ranks, flops_per_token, flops_per_token_causal, peak)


def peak_memory_gib(device: torch.device) -> float:
    """The most that was taken so far: on a GPU by tensors, else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def gpu_memory(device: torch.device) -> int:
    """Bytes of a GPU's memory, as torch reports it: an 80 GB H100 has 79.1 GiB."""
    return torch.cuda.get_device_properties(device).total_memory
