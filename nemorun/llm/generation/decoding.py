"""One token for every row, at a cost that is the memory's and not the host's.

Everything a step reads or changes lies on the device in tensors that stay where they are: the cache, where
each row stands, which rows have ended. So a step has no arguments and no results, and waits for nothing; on
a GPU its kernels are captured once in a CUDA graph, and a step is one launch of that.

What is compiled are three functions: what comes before the blocks, a block, and what comes after. All blocks
run the same compiled code, so starting takes as long for 80 of them as for one; a compiled step of all blocks
would take minutes to compile and run the same kernels.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nemorun.errors import ConfigError
from nemorun.llm.generation.cache import PromptMemory, StepMemory
from nemorun.llm.generation.sampling import How, Sampling, Settings, choose
from nemorun.llm.layers import rotary
from nemorun.llm.model import GPTModel
from nemorun.training.grouped import suits_gpu

_log = logging.getLogger(__name__)

#: Tokens that go through the model at once while prompts are read; more rows go one group after another.
_PROMPT_TOKENS = 16384


class State:
    """Where every row stands."""

    def __init__(self, rows: int, length: int, stops: int, device: torch.device) -> None:
        def numbers(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        self.token = numbers(rows)
        """[B]: the newest token, which the next step reads."""
        self.at = numbers(rows)
        """[B]: its place in the row."""
        self.ended = torch.zeros(rows, dtype=torch.bool, device=device)
        """[B]: has the row all of its tokens? It goes on being computed, but nothing comes of it."""
        self.most = numbers(rows)
        """[B]: how many tokens a row may get."""
        self.step = numbers(1)
        """[1]: how many tokens rows that go on have got."""
        self.output = numbers(rows, length)
        """[B, L]: the new tokens, and -1 where a row had ended."""
        self.uniform = torch.zeros(rows, length, device=device)
        """[B, L] in [0, 1): what each of them is drawn with."""
        self.stop = numbers(stops)
        """Tokens that end a row; -1 is none."""
        self.settings = Settings(device)


class Decoder:
    """Steps of `rows` rows with a cache of `length` places.

    Made once for a shape, which on a GPU takes the time to compile and capture; then `start` and `step` serve
    any prompts and settings that fit it.
    """

    def __init__(self, model: GPTModel, rows: int, length: int, stops: int, how: How, compiled: bool) -> None:
        assert model.head is not None
        device = model.head.weight.device
        self.model = model
        self.how = how
        self.state = State(rows, length, stops, device)
        shape = (2, rows, model.config.kv_heads, length, model.config.head_dim)
        self.kept = [torch.zeros(shape, dtype=model.dtype, device=device) for _ in model.blocks]
        """Of each block the keys and the values."""
        make = _compiled if compiled else _plain
        self._begin, self._block, self._end = make(_begin), make(_block), make(_end)
        # Sorts and running sums are library calls, which the compiler does not improve.
        self._take = make(_take) if how == "likeliest" else _take
        self._memories = [StepMemory(kept, self.state.at) for kept in self.kept]
        self._graph: torch.cuda.CUDAGraph | None = None
        if compiled:
            with _many_shapes():
                self._run()
        if compiled and device.type == "cuda" and _asks_host_nothing(model):
            self._graph = self._captured()

    @torch.no_grad()
    def start(self, prompts: Sequence[Tensor], most: Sequence[int], stop: Tensor, sampling: Sampling) -> None:
        """Read the prompts (B of [S] int64, on the CPU) and give every row its first token.

        `most` [B]: how many tokens each row may get. `stop`: as many as this decoder was made for.
        """
        state, device = self.state, self.state.token.device
        lengths = torch.tensor([len(one) for one in prompts])
        numbers = torch.Generator().manual_seed(sampling.seed)
        # Token by token, so that a longer cache does not change what the first tokens are drawn with.
        state.uniform.copy_(torch.rand(*state.uniform.T.shape, generator=numbers).T)
        state.settings.set(sampling, self.model.config.vocab_size)
        state.at.copy_(lengths - 1)
        state.most.copy_(torch.tensor(most))
        state.stop.copy_(stop)
        state.ended.zero_()
        state.step.zero_()
        tokens = nn.utils.rnn.pad_sequence(list(prompts), batch_first=True).to(device)
        last = self._read(tokens, lengths.to(device) - 1)
        self._take(self._end(self.model, last), state, self.how)

    @torch.no_grad()
    def step(self) -> None:
        """Give every row that has not ended its next token. Returns before the device has done it."""
        if self._graph is None:
            self._run()
        else:
            self._graph.replay()

    def _read(self, tokens: Tensor, last: Tensor) -> Tensor:
        """Fill the cache from tokens [B, S]; the hidden states [B, 1, D] of the tokens at `last` [B]."""
        at_once = max(1, _PROMPT_TOKENS // tokens.shape[1])
        cos, sin = rotary(torch.arange(tokens.shape[1], device=tokens.device), self.model.config)
        found = []
        for first in range(0, len(tokens), at_once):
            rows = slice(first, first + at_once)
            x = self.model.embedding(tokens[rows], self.model.dtype)  # type: ignore[misc]
            for block, kept in zip(self.model.blocks.values(), self.kept, strict=True):
                x = block(x, cos, sin, None, PromptMemory(kept, first))
            found.append(x[torch.arange(len(x), device=x.device), last[rows]])
        return torch.cat(found)[:, None]

    @torch.no_grad()
    def _run(self) -> None:
        state = self.state
        x, cos, sin = self._begin(self.model, state.token, state.at)
        for block, memory in zip(self.model.blocks.values(), self._memories, strict=True):
            x = self._block(block, x, cos, sin, memory)
        self._take(self._end(self.model, x), state, self.how)

    def _captured(self) -> torch.cuda.CUDAGraph:
        device = self.state.token.device
        with torch.cuda.device(device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                self._run()  # libraries make their workspaces for a stream when they are first called on it
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            # Other threads (of a data loader, say) may go on using the device meanwhile.
            with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
                self._run()
        return graph


# --- what is compiled ---


def _begin(model: GPTModel, token: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    assert model.embedding is not None
    return model.embedding(token[:, None], model.dtype), *rotary(at[:, None], model.config)


def _block(block: nn.Module, x: Tensor, cos: Tensor, sin: Tensor, memory: StepMemory) -> Tensor:
    return block(x, cos, sin, None, memory)


def _end(model: GPTModel, x: Tensor) -> Tensor:
    """[B, 1, D] -> logits [B, V] in float32."""
    assert model.norm is not None and model.head is not None
    return model.head(model.norm(x), None)[:, 0].float()


def _take(logits: Tensor, state: State, how: How) -> None:
    """Choose every row's next token, write it down, and move on."""
    token = choose(logits, state.uniform.index_select(1, state.step)[:, 0], state.settings, how)
    state.output.index_copy_(1, state.step, token.masked_fill(state.ended, -1)[:, None])
    state.step.add_(1)
    state.token.copy_(token)
    state.at.add_(~state.ended)
    state.ended.logical_or_((token[:, None] == state.stop).any(1) | (state.step >= state.most))


def _asks_host_nothing(model: GPTModel) -> bool:
    """Experts of a type or size that torch's grouped product does not take are counted on the host."""
    rows = torch.empty(1, model.config.hidden_size, dtype=model.dtype, device=model.head.weight.device)  # type: ignore[union-attr]
    layers = model.expert_layers()
    return all(suits_gpu(rows, layer.gate_up) for layer in layers)


# --- the compiler ---


def compiles(device: torch.device, wanted: bool | None) -> bool:
    """Whether steps are compiled; `wanted` None: on GPUs, where Triton is there for them.

    Raises ConfigError where it is wanted and cannot be.
    """
    able = device.type != "cuda" or _has_triton()
    if wanted and not able:
        raise ConfigError("compile=True needs Triton for this GPU: install triton, or leave compile out")
    if wanted is not None:
        return wanted
    if not able:
        _say_once(logging.WARNING, "generation is slow here: without Triton its steps are not compiled")
    if device.type != "cuda":
        _say_once(logging.INFO, "generation runs without a compiler, which the CPU gains little from")
    return able and device.type == "cuda"


def _has_triton() -> bool:
    from torch.utils._triton import has_triton

    return has_triton()


@functools.cache
def _say_once(level: int, text: str) -> None:
    _log.log(level, text)


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, dynamic=False)


@contextlib.contextmanager
def _many_shapes() -> Iterator[None]:
    """The compiler takes a function that is compiled for many shapes for a mistake; here each is wanted."""
    import torch._dynamo

    with torch._dynamo.config.patch(recompile_limit=1000, accumulated_recompile_limit=10_000):
        yield
