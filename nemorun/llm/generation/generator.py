"""Prompts in, tokens out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nemorun.errors import ConfigError
from nemorun.llm.generation.cache import PLACES
from nemorun.llm.generation.decoding import Decoder, compiles
from nemorun.llm.generation.sampling import Sampling
from nemorun.llm.generation.weights import ready
from nemorun.llm.model import GPTModel

Prompts = Sequence[Sequence[int]] | Tensor
"""Tokens of each row: lists, of any lengths, or one tensor [B, S]."""

#: Caches are made for a multiple of so many tokens, so that other prompts find the step compiled already.
_BUCKET = 2 * PLACES
#: After so many steps the host asks whether all rows have ended, for which it waits for the device.
_LOOK_EVERY = 32


class Generator:
    """Generates with `model`, again and again: what is compiled and the cache stay for the next call.

    The model must stand whole on one device. Its weights are shared, except those that are not of `dtype` yet
    and those with adapters, of which this keeps copies, as they are now.

    Args:
        model: With weights, on the device where it is to run.
        dtype: What is computed in. None: `model.dtype`, or the type of its weights after
            `model.to(torch.bfloat16)`, which also spares the copies.
        compile: Compile the steps. None: on GPUs.

    Raises:
        ConfigError: The model is divided over ranks, or `compile` is asked for and cannot be.
        RuntimeError: It has no weights yet.
    """

    def __init__(
        self, model: GPTModel, *, dtype: torch.dtype | None = None, compile: bool | None = None
    ) -> None:
        self.model = ready(model, dtype)
        assert self.model.head is not None
        self.compiles = compiles(self.model.head.weight.device, compile)
        self._decoder: tuple[Any, Decoder] | None = None

    def __call__(
        self,
        prompts: Prompts,
        *,
        max_tokens: int | Sequence[int] = 100,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[int] = (),
        mask: Tensor | None = None,
    ) -> list[list[int]]:
        """Continue every row of `prompts`; returns the new tokens of each.

        A row ends after `max_tokens` tokens, or with the first one that is in `stop`, which it keeps.

        Args:
            prompts: Lists of tokens, or a tensor [B, S].
            max_tokens: For all rows, or one number for each.
            temperature: Logits are divided by it. 0: the likeliest token always.
            top_k: Draw from the so many likeliest tokens. 0: from all.
            top_p: Draw from the fewest likeliest tokens that together have this probability (of what `top_k`
                leaves).
            seed: Same seed, same text.
            stop: Tokens that end a row.
            mask: [B, S], for a tensor of prompts: 0 or False where it is padded, on either side.

        Raises:
            ConfigError: A prompt is empty, has tokens that the model does not know, or is with `max_tokens`
                longer than `seq_length` of the model; or a setting is out of its bounds.
        """
        sampling = Sampling(temperature, top_k, top_p, seed)
        sampling.validate()
        rows = _rows(prompts, mask)
        most = [max_tokens] * len(rows) if isinstance(max_tokens, int) else list(max_tokens)
        self._check(rows, most, stop)
        if not rows:
            return []
        length = max(len(row) + n for row, n in zip(rows, most, strict=True))
        decoder = self._decoder_for(len(rows), -(-length // _BUCKET) * _BUCKET, max(len(stop), 1), sampling)
        decoder.start(rows, most, torch.tensor(list(stop) or [-1]), sampling)
        for done in range(1, max(most)):
            if done % _LOOK_EVERY == 0 and bool(decoder.state.ended.all()):
                break
            decoder.step()
        output = decoder.state.output[:, : int(decoder.state.step)].tolist()
        return [[token for token in row if token >= 0] for row in output]

    def _decoder_for(self, rows: int, length: int, stops: int, sampling: Sampling) -> Decoder:
        """The last one, if it fits. Only one is kept: a cache may be as large as the model."""
        key = (rows, length, stops, sampling.how)
        if self._decoder is None or self._decoder[0] != key:
            self._decoder = None  # gives its memory back first
            self._decoder = key, Decoder(self.model, *key, compiled=self.compiles)
        return self._decoder[1]

    def _check(self, rows: list[Tensor], most: list[int], stop: Sequence[int]) -> None:
        vocabulary, context = self.model.config.vocab_size, self.model.config.seq_length
        if len(most) != len(rows):
            raise ConfigError(
                f"max_tokens has {len(most)} numbers and there are {len(rows)} prompts: give one for each, "
                "or one for all"
            )
        for i, (row, n) in enumerate(zip(rows, most, strict=True)):
            if n < 1:
                raise ConfigError(f"max_tokens={n} must be at least 1")
            if not len(row):
                raise ConfigError(
                    f"prompts[{i}] is empty: give it a token at least, such as the one for a beginning"
                )
            for token in (int(row.min()), int(row.max())):
                if not 0 <= token < vocabulary:
                    raise ConfigError(
                        f"prompts[{i}] has token {token}, and vocab_size={vocabulary} of the model allows "
                        f"0 to {vocabulary - 1}: is it another model's tokenizer?"
                    )
            if len(row) + n > context:
                raise ConfigError(
                    f"prompts[{i}] has {len(row)} tokens and max_tokens={n} would make it {len(row) + n}, "
                    f"and seq_length={context} of the model is its context: shorten the prompt, lower "
                    "max_tokens, or raise model.config.seq_length if the model was trained for more"
                )
        for token in stop:
            if not 0 <= token < vocabulary:
                raise ConfigError(f"stop has token {token}, and the model has 0 to {vocabulary - 1}")


def generate(
    model: GPTModel,
    prompts: Prompts,
    *,
    dtype: torch.dtype | None = None,
    compile: bool | None = None,
    **settings: Any,
) -> list[list[int]]:
    """Continue `prompts` once: `Generator(model, ...)(prompts, ...)`, whose settings this takes.

    To generate again, keep a `Generator`: on a GPU most of the first call's time is for compiling.
    """
    return Generator(model, dtype=dtype, compile=compile)(prompts, **settings)


def _rows(prompts: Prompts, mask: Tensor | None) -> list[Tensor]:
    """One tensor [S] for each row, on the CPU and without padding."""
    if not isinstance(prompts, Tensor):
        if mask is not None:
            raise ConfigError("mask is for prompts that are a tensor: lists of tokens need no padding")
        return [torch.as_tensor(row, dtype=torch.int64).cpu() for row in prompts]
    if prompts.dim() != 2 or (mask is not None and mask.shape != prompts.shape):
        shapes = f"prompts {list(prompts.shape)}" + (
            f" and mask {list(mask.shape)}" if mask is not None else ""
        )
        raise ConfigError(f"{shapes} must be [rows, tokens], both alike")
    rows = prompts.to("cpu", torch.int64)
    if mask is None:
        return list(rows)
    return [row[keep] for row, keep in zip(rows, mask.cpu().bool(), strict=True)]
