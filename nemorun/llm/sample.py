"""The text that a byte-level model shows at the end of its training, on all of its ranks together.

The whole context runs through the model for each token: simple, not fast, and the same however the model is
divided. `nemorun.llm.generation` is the fast way, for a whole model on one device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nemorun.llm.data import END


@torch.no_grad()
def continued(
    forward: Callable[[Tensor], Tensor],
    prompt: bytes,
    *,
    max_tokens: int,
    context: int,
    temperature: float = 0.8,
    seed: int = 0,
) -> str:
    """Continue `prompt` by up to `max_tokens` tokens, or to the end of the document; returns prompt and text.

    `forward` maps tokens [1, S] with S <= `context` to logits [1, S, V]. `temperature` 0 always takes the
    likeliest token. Ranks that share a model must all call this with the same arguments; all draw the same.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = [END, *prompt]
    for _ in range(max_tokens):
        logits = forward(torch.tensor([tokens[-context:]]))[0, -1, : END + 1].float().cpu()
        if temperature:
            drawn = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
        else:
            drawn = logits.argmax()
        tokens.append(int(drawn))
        if tokens[-1] == END:
            break
    return bytes(t for t in tokens if t != END).decode("utf-8", errors="replace")
