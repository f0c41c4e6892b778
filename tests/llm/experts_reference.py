"""What a mixture of experts must compute, token by token, with torch's own gradients of everything."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nemorun.llm.config import GPTConfig
from nemorun.llm.experts import Experts

CONFIG = GPTConfig(hidden_size=8, ffn_hidden_size=16, num_experts=4, experts_per_token=2, aux_loss_coeff=0.3)
SCALE = 1 / 7


@dataclass
class Case:
    """Rows of tokens, the weights, and the gradient that comes from above."""

    x: Tensor
    valid: Tensor
    above: Tensor
    weights: dict[str, Tensor]


def case(kind: str = "plain", rows: int = 4, length: int = 6) -> Case:
    """`unused`: one expert gets no token. `elsewhere`: the first row's tokens go to the last two experts, and
    those of the last row to the first two."""
    torch.manual_seed(1)
    x = torch.randn(rows, length, CONFIG.hidden_size)
    weights = {name: torch.randn(p.shape) * 0.5 for name, p in Experts(CONFIG).named_parameters()}
    if kind == "unused":
        x[..., 0] = 1.0
        weights["router.weight"][:, 0] = torch.tensor([0.0, 0.0, -50.0, 0.0])
    if kind == "elsewhere":
        x[..., 0] = 0.0
        x[0, :, 0], x[-1, :, 0] = 1.0, -1.0
        weights["router.weight"][:, 0] = torch.tensor([-50.0, -50.0, 50.0, 50.0])
    valid = torch.rand(rows, length) > 0.3
    valid[1] = False
    return Case(x, valid, torch.randn(rows, length, CONFIG.hidden_size), weights)


def load(layer: Experts, weights: dict[str, Tensor]) -> Experts:
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(weights[name])
    return layer


def naive(c: Case) -> dict[str, Tensor]:
    """Output, gradients, aux loss (its sum over tokens) and tokens per expert."""
    x = c.x.clone().requires_grad_()
    w = {name: weight.clone().requires_grad_() for name, weight in c.weights.items()}
    # blocks of gates and of the other factors, put in order
    gate, up = w["gate_up"].unflatten(1, (-1, 2, CONFIG.gate_block)).unbind(2)
    gate, up = gate.flatten(1, 2), up.flatten(1, 2)
    k, count = CONFIG.experts_per_token, CONFIG.num_experts
    aux, tokens, rows = torch.zeros(()), torch.zeros(count), []
    for row, valid in zip(x, c.valid, strict=True):
        hits, probabilities, outputs = torch.zeros(count), torch.zeros(count), []
        for token, counts in zip(row, valid.tolist(), strict=True):
            logits = w["router.weight"] @ token
            best = logits.topk(k)
            y = torch.zeros_like(token)
            for share, e in zip(best.values.softmax(0), best.indices.tolist(), strict=True):
                y = y + share * (w["down"][e] @ (F.silu(gate[e] @ token) * (up[e] @ token)))
                hits[e] += counts
            if counts:
                probabilities = probabilities + logits.softmax(0)
            outputs.append(y)
        rows.append(torch.stack(outputs))
        n = valid.sum().clamp(min=1)
        aux = aux + n * count * (hits / n * (probabilities / n)).sum()
        tokens += hits
    y = torch.stack(rows)
    ((y * c.above).sum() + SCALE * CONFIG.aux_loss_coeff * aux).backward()
    found = {"y": y.detach(), "x": x.grad, "aux": aux.detach(), "tokens": tokens}
    return found | {name: weight.grad for name, weight in w.items()}


def differences(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> list[str]:
    """What is not equal, relative to the largest value, in words."""
    assert found.keys() == expected.keys()
    wrong = []
    for name, value in expected.items():
        error = ((found[name] - value).abs().max() / value.abs().max().clamp(min=1.0)).item()
        if not error <= tolerance:
            wrong.append(f"{name} is off by {error:.2g}")
    return wrong
