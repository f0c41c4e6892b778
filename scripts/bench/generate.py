#!/usr/bin/env python3
"""Tokens a second of generated text, beside the memory's limit and beside transformers, in one run.

    python scripts/bench/generate.py                   the 8B shape, batch 1 and 32, 512 tokens in, 256 out
    python scripts/bench/generate.py --batch 1 --json g.json
    python scripts/bench/generate.py --layers 2 --hidden 64 --vocab 512 --prompt 16 --new 8     on any CPU

Weights are random, bfloat16. The floor of a step is the time to read what it must: all weights but the
embedding's table once, and from two rows on every row's keys and values. The bandwidth for it is measured
first, as the greater of a copy of a large buffer (bytes read and written) and a product of a large matrix
with a vector (bytes read). Decoding is timed as a call for all tokens less a call for one, which is the
prompt's time; both are the best of --repeat. "first call" is what the first took longer: it compiles.

transformers' `generate` runs as its users call it: sdpa and defaults, which are eager with a growing cache.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from kernels import kernel_table

from nemorun.llm import Generator, GPTConfig, GPTModel
from nemorun.llm.generation import decoding


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument(
        "--hidden", type=int, default=4096, help="width; others follow in the 8B's proportions"
    )
    parser.add_argument("--vocab", type=int, default=128256)
    parser.add_argument("--prompt", type=int, default=512, help="tokens in")
    parser.add_argument("--new", type=int, default=256, help="tokens out")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-peer", action="store_true", help="leave transformers out")
    parser.add_argument("--trace", metavar="FILE", help="write where the time of four steps goes, by kernel")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()

    device = torch.device(options.device)
    speeds = bandwidths(device)
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "shape": {k: getattr(options, k) for k in ("layers", "hidden", "vocab", "prompt", "new")},
        "bandwidth": speeds,
        "rows": [],
    }
    say(
        f"{results['device']}, torch {results['torch']}, "
        + ", ".join(f"{k} {v:,.0f} GB/s" for k, v in speeds.items())
    )
    for measure in [ours] if options.no_peer else [ours, theirs]:
        results["rows"] += measure(options, device)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    for row in results["rows"]:
        row["floor_tokens_per_second"] = floor(options, row["batch"], max(speeds.values()))
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1))
    print(table(results))


def table(results: dict[str, Any]) -> str:
    lines = [
        f"{'':<14} {'batch':>5} {'tokens/s':>10} {'ms/step':>8} {'prefill ms':>10} {'floor':>9} {'ratio':>6} "
        f"{'first call s':>12} {'GiB':>6}"
    ]
    for row in results["rows"]:
        if "error" in row:
            lines.append(f"{row['what']:<14} {row['error']}")
            continue
        speed, limit, prompt = row["tokens_per_second"], row["floor_tokens_per_second"], row["prefill_ms"]
        lines.append(
            f"{row['what']:<14} {row['batch']:>5} {speed:>10,.1f} {row['step_ms']:>8.3f} {prompt:>10.1f} "
            f"{limit:>9,.1f} {speed / limit:>6.3f} {row['compile_s']:>12.1f} {row['gib']:>6.1f}"
        )
    return "\n".join(lines)


# --- what is measured ---


def ours(options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    model = GPTModel(shape(options)).to(torch.bfloat16).materialize(device)
    generator = Generator(model)
    found = []
    for batch in options.batch:
        tokens = prompts(options, batch)

        def run(new: int, tokens: torch.Tensor = tokens) -> None:
            got = generator(tokens, max_tokens=new, temperature=options.temperature, top_p=options.top_p)
            assert all(len(row) == new for row in got)

        found.append(timed("nemorun", options, batch, device, run))
        if options.trace and batch == options.batch[0]:
            traced(generator._decoder[1], Path(options.trace), device)  # type: ignore[index]
        say(json.dumps(found[-1]))
    return found


def theirs(options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    try:
        import transformers
    except ImportError:
        return [{"what": "transformers", "batch": 0, "error": "is not installed"}]
    c = shape(options)
    config = transformers.LlamaConfig(
        hidden_size=c.hidden_size,
        intermediate_size=c.ffn_size,
        num_hidden_layers=c.num_layers,
        num_attention_heads=c.num_attention_heads,
        num_key_value_heads=c.kv_heads,
        vocab_size=c.vocab_size,
        max_position_embeddings=c.seq_length,
        rope_theta=c.rope_theta,
        attn_implementation="sdpa",
    )
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = transformers.LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(usual)
    model.generation_config.eos_token_id = None  # so that all tokens are made
    how: dict[str, Any] = {"do_sample": False}
    if options.temperature:
        how = {"do_sample": True, "temperature": options.temperature, "top_p": options.top_p, "top_k": 0}
    found = []
    for batch in options.batch:
        tokens = prompts(options, batch).to(device)

        def run(new: int, tokens: torch.Tensor = tokens) -> None:
            mask = torch.ones_like(tokens)
            got = model.generate(tokens, attention_mask=mask, max_new_tokens=new, pad_token_id=0, **how)
            assert got.shape[1] == tokens.shape[1] + new

        found.append(timed("transformers", options, batch, device, run, repeat=1))
        say(json.dumps(found[-1]))
    return found


def timed(
    what: str,
    options: argparse.Namespace,
    batch: int,
    device: torch.device,
    run: Callable[[int], None],
    repeat: int | None = None,
) -> dict[str, Any]:
    def seconds(new: int) -> float:
        sync(device)
        begin = time.perf_counter()
        run(new)
        sync(device)
        return time.perf_counter() - begin

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    first = seconds(2)
    times = repeat or options.repeat
    prefill = min(seconds(1) for _ in range(times + 1))
    whole = min(seconds(options.new) for _ in range(times))
    step = (whole - prefill) / (options.new - 1)
    return {
        "what": what,
        "batch": batch,
        "tokens_per_second": batch / step,
        "step_ms": step * 1000,
        "prefill_ms": prefill * 1000,
        "compile_s": first - prefill,
        "gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0,
    }


def traced(decoder: decoding.Decoder, path: Path, device: torch.device) -> None:
    with torch.profiler.profile() as profiler:
        for _ in range(4):
            decoder.step()
        sync(device)
    path.write_text(kernel_table(profiler))


# --- the limit ---


def bandwidths(device: torch.device) -> dict[str, float]:
    """GB/s of a copy, and of reading a matrix to multiply it with a vector."""
    elements = (
        2**31 if device.type == "cuda" else 2**22
    )  # 4 GiB of bfloat16: no cache holds a part that matters
    matrix = torch.ones(elements // 8192, 8192, dtype=torch.bfloat16, device=device)
    target, vector = torch.empty_like(matrix), torch.ones(8192, dtype=torch.bfloat16, device=device)
    size = matrix.numel() * 2

    def best(run: Callable[[], Any]) -> float:
        times = []
        for _ in range(12):
            sync(device)
            begin = time.perf_counter()
            run()
            sync(device)
            times.append(time.perf_counter() - begin)
        return min(times)

    return {
        "copy": 2 * size / best(lambda: target.copy_(matrix)) / 1e9,
        "matrix x vector": size / best(lambda: matrix @ vector) / 1e9,
    }


def floor(options: argparse.Namespace, batch: int, gigabytes_per_second: float) -> float:
    """Tokens a second if a step took only the time to read what it must."""
    c = shape(options)
    size = 2 * (c.num_parameters() - c.vocab_size * c.hidden_size)
    if batch > 1:
        seen = options.prompt + options.new / 2  # on average
        size += batch * int(seen * c.num_layers * 2 * c.kv_heads * c.head_dim * 2)
    return batch * gigabytes_per_second * 1e9 / size


def shape(options: argparse.Namespace) -> GPTConfig:
    heads = max(options.hidden // 128, 4)
    return GPTConfig(
        hidden_size=options.hidden,
        num_layers=options.layers,
        num_attention_heads=heads,
        num_query_groups=heads // 4,
        vocab_size=options.vocab,
        seq_length=max(8192, options.prompt + options.new),
    )


def prompts(options: argparse.Namespace, batch: int) -> torch.Tensor:
    numbers = torch.Generator().manual_seed(batch)
    return torch.randint(1, options.vocab, (batch, options.prompt), generator=numbers)


def sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
