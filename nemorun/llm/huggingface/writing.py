"""A model that is divided over ranks into a folder that transformers reads: one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from nemorun.llm.config import GPTConfig
from nemorun.llm.huggingface.config import read_json, to_huggingface
from nemorun.llm.huggingface.files import INDEX, SINGLE
from nemorun.llm.huggingface.folders import publishing
from nemorun.llm.huggingface.gathering import Gatherer
from nemorun.llm.huggingface.names import Entry, model_entries

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def write_model(
    folder: str | Path,
    parameters: Mapping[str, Tensor],
    config: GPTConfig,
    *,
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16",
    merge_lora: bool = True,
    max_shard_bytes: int = 5_000_000_000,
    tokenizer: str | Path | None = None,
    architecture: str | None = None,
    overwrite: bool = False,
    group: dist.ProcessGroup | None = None,
) -> None:
    """Write the model to a new folder. Every rank of `group` calls it with the parameters that it has.

    Args:
        folder: A new folder, made by the first rank, whole or not at all.
        parameters: This rank's, plain tensors or DTensors, by their global names.
        config: The whole model.
        dtype: Of the tensors in the files.
        merge_lora: Add the adapters, where there are some, to the matrices that they adapt. False: leave them
            out; `write_adapter` writes them by themselves.
        max_shard_bytes: Of one file; a larger parameter has a file of its own.
        tokenizer: A folder whose tokenizer is copied, with the token ids of its config.json.
        architecture: Class of transformers. None: the tokenizer's folder's if it fits, else by shape.
        overwrite: Take the place of a folder that is there already.

    Raises:
        TrainingError: on all ranks alike, also where only the first could not write.
    """
    entries = list(model_entries(config))
    with_adapters = [f"{_stem(entry.name)}.{half}" for entry in entries for half in ("lora_a", "lora_b")]
    gatherer = Gatherer([*(entry.name for entry in entries), *with_adapters], parameters, group)
    gatherer.require([entry.name for entry in entries])
    described = _described(config, dtype, tokenizer, architecture)
    shards = list(_shards(entries, DTYPES[dtype].itemsize, max_shard_bytes))

    def tensors(shard: list[Entry]) -> Iterator[tuple[str, Tensor]]:
        for entry in shard:
            whole = gatherer.take(entry.name, entry.shape)
            if merge_lora and f"{_stem(entry.name)}.lora_b" in gatherer:
                whole = _merged(whole, entry, config, gatherer)
            if whole is not None:
                yield from split(whole, entry, DTYPES[dtype])

    with publishing(Path(folder), gatherer, overwrite) as target:
        file_of: dict[str, str] = {}
        total = 0
        for number, shard in enumerate(shards, start=1):
            name = SINGLE.format(stem="model")
            if len(shards) > 1:
                name = SINGLE.format(stem=f"model-{number:05d}-of-{len(shards):05d}")
            found = dict(tensors(shard))
            target.save(name, found)
            file_of |= dict.fromkeys(found, name)
            total += sum(one.nbytes for one in found.values())
        if len(shards) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": file_of}
            target.write_json(INDEX.format(stem="model"), index)
        target.write_json("config.json", described)
        if tokenizer is not None:
            target.copy(Path(tokenizer).expanduser(), TOKENIZER_FILES)


def split(whole: Tensor, entry: Entry, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a checkpoint that a parameter of ours is made of."""
    for part in entry.parts:
        matrix = whole if part.expert is None else whole[part.expert]
        yield part.name, (matrix if part.places is None else matrix[part.places]).to(dtype).contiguous()


def _merged(whole: Tensor | None, entry: Entry, config: GPTConfig, gatherer: Gatherer) -> Tensor | None:
    """W + (alpha / rank) B A, each part of the rows with its own A, in float32."""
    rank, parts = config.lora.rank, entry.parts
    stem = _stem(entry.name)
    a = gatherer.take(f"{stem}.lora_a", (len(parts) * rank, entry.shape[1]))
    b = gatherer.take(f"{stem}.lora_b", (entry.shape[0], rank))
    if whole is None or a is None or b is None:
        return None
    merged = whole.float().clone()
    for number, part in enumerate(parts):
        own_a = a[number * rank : (number + 1) * rank].float()
        rows = slice(None) if part.places is None else part.places
        merged[rows] += config.lora.alpha / rank * (b[rows].float() @ own_a)
    return merged


def _stem(name: str) -> str:
    return name.removesuffix(".weight")


def _shards(entries: Iterable[Entry], itemsize: int, most: int) -> Iterator[list[Entry]]:
    shard: list[Entry] = []
    size = 0
    for entry in entries:
        own = torch.Size(entry.shape).numel() * itemsize
        if shard and size + own > most:
            yield shard
            shard, size = [], 0
        shard.append(entry)
        size += own
    yield shard


def _described(
    config: GPTConfig, dtype: str, tokenizer: str | Path | None, architecture: str | None
) -> dict[str, Any]:
    """The config.json; the tokenizer's own says which tokens begin and end, and what class the model was."""
    like: dict[str, Any] = {}
    if tokenizer is not None and (Path(tokenizer).expanduser() / "config.json").is_file():
        like = read_json(Path(tokenizer), "config.json")
    names = like.get("architectures") or []
    was_mistral = "MistralForCausalLM" in names and config.rope_scaling is None and not config.num_experts
    if architecture is None and was_mistral and config.gated:  # it has the tensors of a Llama
        architecture = "MistralForCausalLM"
    return to_huggingface(config, dtype, architecture) | {k: like[k] for k in _TOKEN_IDS if k in like}
