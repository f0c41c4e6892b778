"""Generation on a CUDA machine: captured steps against plain ones, and against the whole context run anew.

    python tests/gpu/generation_check.py          one line for each model; ends with 1 if one is wrong
    python tests/gpu/generation_check.py tied experts    some models
    python tests/gpu/generation_check.py --cpu    one model without a GPU, uncompiled: tests this program

It needs no pytest and no network.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from nemorun.llm import Generator, GPTConfig, GPTModel
from nemorun.llm.config import LoraConfig

CUDA = "--cpu" not in sys.argv
MODELS: dict[str, dict[str, Any]] = {
    "grouped queries": {"num_query_groups": 2},
    "all heads": {},
    "tied": {"tie_embeddings": True},
    "experts": {"num_experts": 4},
    "squared relu": {"activation": "squared_relu", "normalization": "layernorm1p", "rotary_percent": 0.5},
    "adapters": {"lora": LoraConfig(enabled=True, rank=8)},
}
DRAWN = ({"temperature": 0.8}, {"temperature": 0.8, "top_k": 20}, {"temperature": 0.8, "top_p": 0.7})


def model(**changes: Any) -> GPTModel:
    sizes = {"hidden_size": 256, "num_layers": 4, "num_attention_heads": 4, "vocab_size": 1000}
    made = GPTModel(GPTConfig(**sizes | {"seq_length": 1024} | changes))
    made.materialize("cuda" if CUDA else "cpu")
    numbers = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=numbers).to(parameter.device) * 0.05)
    return made.eval()


def prompts(rows: int) -> list[list[int]]:
    numbers = torch.Generator().manual_seed(rows)
    lengths = torch.randint(1, 200, (rows,), generator=numbers).tolist()
    return [torch.randint(0, 1000, (n,), generator=numbers).tolist() for n in lengths]


@torch.no_grad()
def short(whole: GPTModel, prompt: list[int], new: list[int]) -> float:
    """By how much the worst new token's logit is below the greatest, the context run anew in float32."""
    tokens = torch.tensor([prompt + new], device="cuda" if CUDA else "cpu")
    logits = whole(tokens)[0, len(prompt) - 1 : -1].float()
    return float((logits.amax(-1) - logits.gather(1, tokens[0, len(prompt) :, None])[:, 0]).max())


def check(name: str, dtype: torch.dtype) -> bool:
    whole = model(**MODELS[name])
    started = time.perf_counter()
    captured = Generator(whole, dtype=dtype)
    plain = Generator(whole, dtype=dtype, compile=False)
    below, equal, drawn = 0.0, [], []
    for rows in (1, 5) if CUDA else (1, 2):
        given, count = prompts(rows), 60 if CUDA else 6
        found = captured(given, max_tokens=count, temperature=0)
        equal += [a == b for a, b in zip(found, plain(given, max_tokens=count, temperature=0), strict=True)]
        below = max(below, *(short(whole, *pair) for pair in zip(given, found, strict=True)))
        again = captured(given, max_tokens=count, temperature=0)
        equal.append(again == found)
        for how in DRAWN:
            pair = [each(given, max_tokens=count, seed=3, **how) for each in (captured, plain)]
            drawn += [a[:5] == b[:5] for a, b in zip(*pair, strict=True)]
    exact = dtype == torch.float32
    # Rounding may choose another of two tokens that are nearly as likely, and after that all is different.
    # It may send a token to another expert, too.
    allowed = 1e-3 if exact else 2.0 if name == "experts" else 0.3
    good = below < allowed and (not exact or (all(equal) and all(drawn)))
    graph = "CUDA graph" if captured._decoder and captured._decoder[1]._graph else "no graph"
    print(
        f"{'ok   ' if good else 'WRONG'} {name:<16} {str(dtype)[6:]:<9} {graph:<10} "
        f"rows alike {sum(equal)}/{len(equal)}, drawn {sum(drawn)}/{len(drawn)}, below the likeliest by at "
        f"most {below:.1e}, {time.perf_counter() - started:.0f} s",
        flush=True,
    )
    return good


def main() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    chosen = [word for word in sys.argv[1:] if word in MODELS]
    names = chosen or (list(MODELS) if CUDA else ["tied"])
    results = [check(name, dtype) for name in names for dtype in (torch.float32, torch.bfloat16)]
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
