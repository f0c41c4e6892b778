"""Attention: kernels against plain softmax, documents, and the ring against one rank."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from nemorun.training.attention import Documents, attend, join_sequence, kernels, split_sequence
from nemorun.training.attention import documents as documents_module
from nemorun.training.attention.blocks import BlockKernel, Cudnn, Flash, Products
from nemorun.training.attention.zigzag import fold, unfold, whole_rectangles
from tests.training import attention_ranks
from tests.training.stand_ins import operators_on_the_cpu

CPU = torch.device("cpu")


def inputs(rows: int, length: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Query (4 heads), key and value (2; views, as models have them), and the output's gradient."""
    numbers = torch.Generator().manual_seed(length)
    grad = torch.randn(rows, length, 4, 8, generator=numbers).to(dtype)
    qkv = torch.randn(rows, length, 2, 4, 8, generator=numbers).to(dtype)
    parts = (qkv[..., :2, :].flatten(2, 3), qkv[..., 2, :], qkv[..., 3, :])
    return [*(x.requires_grad_() for x in parts), grad]


def plain(query: Tensor, key: Tensor, value: Tensor, positions: Tensor | None) -> Tensor:
    """By the definition, one query at a time in float64."""
    query, key, value = query.double(), key.double(), value.double()
    out = torch.zeros_like(query)
    for row in range(query.shape[0]):
        for token in range(query.shape[1]):
            first = 0 if positions is None else token - int(positions[row, token])
            for head in range(query.shape[2]):
                group = head // (query.shape[2] // key.shape[2])
                seen = key[row, first : token + 1, group], value[row, first : token + 1, group]
                scores = seen[0] @ query[row, token, head] / query.shape[3] ** 0.5
                out[row, token, head] = scores.softmax(0) @ seen[1]
    return out


def relative(got: Tensor, wanted: Tensor) -> float:
    return float(
        (got.detach().double() - wanted.detach()).abs().max() / wanted.detach().abs().max().clamp(min=1)
    )


PACKED = attention_ranks.positions_of([[3, 1, 1, 10, 5], [20]])
LONG = attention_ranks.positions_of([[5, 500, 15], [520]])


@pytest.mark.parametrize("positions", [None, PACKED], ids=["whole", "packed"])
@pytest.mark.parametrize("kernel", [kernels._products, kernels._sdpa])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_kernels_are_attention(
    kernel: object, positions: Tensor | None, dtype: torch.dtype, tolerance: float
) -> None:
    query, key, value, grad = inputs(2, 20, dtype)
    documents = None if positions is None else Documents(positions, CPU)
    out = kernel(query, key, value, documents)  # type: ignore[operator]
    wanted = plain(query, key, value, positions)
    assert out.dtype == dtype
    assert relative(out, wanted) < tolerance
    got = torch.autograd.grad(out, (query, key, value), grad)
    for gradient, expected in zip(
        got, torch.autograd.grad(wanted, (query, key, value), grad.double()), strict=True
    ):
        assert relative(gradient, expected.double()) < tolerance


@pytest.mark.parametrize("length", [512, 514])
def test_long_and_short_rows_take_documents(length: int) -> None:
    query, key, value, _ = inputs(1, length)
    positions = attention_ranks.positions_of([[200, length - 200]])
    out = attend(query, key, value, Documents(positions, CPU))
    for part in (slice(0, 200), slice(200, None)):
        assert relative(out[:, part], attend(query[:, part], key[:, part], value[:, part]).double()) < 1e-5


def test_documents_have_the_forms_that_kernels_want() -> None:
    documents = Documents(PACKED, CPU)
    assert documents.borders.tolist() == [0, 3, 4, 5, 15, 20, 40, 40, 40]
    assert documents.borders.dtype == torch.int32
    assert documents.longest == 20
    assert documents.ids[0].unique().tolist() == [1, 2, 3, 4, 5]
    assert Documents(PACKED[:1], CPU).longest == 16
    # Padding without places of its own: each is a document.
    assert Documents(torch.tensor([[0, 1, 0, 0, 0]]), CPU).borders.tolist() == [0, 2, 3, 4, 5]


@pytest.mark.parametrize("positions", [None, PACKED, LONG], ids=["whole", "packed", "long"])
def test_a_compiled_block_is_one_graph_and_not_compiled_for_each_batch(positions: Tensor | None) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    block = torch.compile(attend, fullgraph=True, backend=counter)
    query, key, value, _ = inputs(2, 20 if positions is None else positions.shape[1])
    batches = [None] if positions is None else [positions, positions.flip(0), positions[[1, 1]]]
    for batch in batches:
        documents = None if batch is None else Documents(batch, CPU)
        out = block(query, key, value, documents)
        assert relative(out, plain(query, key, value, batch)) < 1e-6
        out.sum().backward()
    assert counter.frame_count == 1


def test_variable_length_attention_is_compiled_twice_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator as a stand-in on the CPU: it shows what is passed and traced, not what a GPU computes."""
    monkeypatch.setattr(documents_module, "has_flash", lambda device: True)
    counter = CompileCounterWithBackend("aot_eager")
    block = torch.compile(lambda *x: attend(*x) * 2, fullgraph=True, backend=counter)
    with operators_on_the_cpu():
        for lengths in ([40], [20, 20], [3, 7, 30], [1] * 40, [25, 15], [9] * 4 + [4]):
            query, key, value, grad = inputs(1, 40, torch.bfloat16)
            positions = attention_ranks.positions_of([lengths])
            out = block(query, key, value, Documents(positions, CPU))
            wanted = plain(query, key, value, positions) * 2
            assert relative(out, wanted) < 2e-2
            got = torch.autograd.grad(out, (query, key, value), grad)
            for gradient, expected in zip(
                got, torch.autograd.grad(wanted, (query, key, value), grad.double()), strict=True
            ):
                assert relative(gradient, expected.double()) < 2e-2
    assert counter.frame_count == 2


@pytest.mark.parametrize(
    ("kernel", "lse_dims", "packed"),
    [(Flash, 3, False), (Flash, 3, True), (Cudnn, 3, False), (Cudnn, 4, False)],
)
def test_kernels_of_a_gpu_are_called_as_their_schemas_say(
    kernel: type[BlockKernel], lse_dims: int, packed: bool
) -> None:
    query, key, value, grad = (x.detach() for x in inputs(2, 20))
    documents = Documents(PACKED, CPU) if packed else None
    with operators_on_the_cpu(lse_dims):
        fast, exact = kernel(), Products()
        for queries, causal in ((slice(0, 20), True), (slice(3, 10), False)):
            if packed and not causal:
                continue
            first, last = (query[:, queries], key, value), (grad[:, queries],)
            out, lse = fast.forward(*first, causal=causal, documents=documents)
            wanted, wanted_lse = exact.forward(*first, causal=causal, documents=documents)
            torch.testing.assert_close((out, lse), (wanted, wanted_lse))
            got = fast.backward(*last, *first, out, lse, causal=causal, documents=documents)
            expected = exact.backward(*last, *first, out, lse, causal=causal, documents=documents)
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_shares_make_the_whole_again(size: int) -> None:
    whole = torch.arange(2 * 24 * 3).view(2, 24, 3)
    shares = [split_sequence(whole, rank, size) for rank in range(size)]
    assert torch.equal(join_sequence(shares), whole)
    assert torch.equal(
        join_sequence([split_sequence(whole[0], r, size, 0) for r in range(size)], 0), whole[0]
    )
    assert torch.equal(unfold(fold(whole)), whole)
    if size == 2:
        assert shares[0][0, :, 0].tolist() == [*range(0, 18, 3), *range(54, 72, 3)]


def test_a_sequence_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="a sequence of 18 does not divide into 2 x 2 chunks"):
        split_sequence(torch.zeros(1, 18), 0, 2)


@given(
    size=st.integers(2, 4),
    chunk=st.integers(1, 5),
    rows=st.lists(st.lists(st.integers(1, 12), min_size=1), min_size=1, max_size=3),
)
@settings(max_examples=60)
def test_each_pair_is_multiplied_once_if_a_mask_would_show_it(
    size: int, chunk: int, rows: list[list[int]]
) -> None:
    length = 2 * size * chunk
    positions = torch.stack([torch.cat([torch.arange(n) for n in [*row, length]])[:length] for row in rows])
    places = torch.arange(length).expand(len(rows), -1)
    shares = [split_sequence(places, rank, size) for rank in range(size)]
    for packed in (True, False):
        count = torch.zeros(len(rows), length, length, dtype=torch.int64)
        for rank, mine in enumerate(shares):
            documents = Documents(positions, CPU, rank, size)
            own = fold(mine)
            if packed:
                for index, mask in enumerate(documents.mask()):
                    count[index // 2, own[index][:, None], own[index]] += mask
            else:
                count[:, mine[0][:, None], mine[0]] += torch.ones(2 * chunk, 2 * chunk).tril().long()
            steps = documents.rectangles if packed else whole_rectangles(2 * chunk, rank, size)
            for step, rectangles in enumerate(steps):
                theirs = shares[(rank - step) % size]
                for at in rectangles:
                    count[at.rows, mine[0, at.queries][:, None], theirs[0, at.keys]] += 1
        shown = Documents(positions if packed else places, CPU).mask()
        assert torch.equal(count, shown.long())


@pytest.mark.slow
def test_a_ring_is_one_rank() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.training.attention_ranks", "1", "2", "4"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
    )
    assert ended.returncode == 0, ended.stdout
