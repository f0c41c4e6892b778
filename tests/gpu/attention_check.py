"""Every path of attention on a CUDA machine against plain products in float32: forward, gradients and time.

    python tests/gpu/attention_check.py          one line for each path; ends with 1 if one is wrong
    python tests/gpu/attention_check.py --cpu    the same, small, without a GPU: tests this program

Rings run with all ranks as threads on one card, then through NCCL on one rank, and on two if there are two
cards (it starts torchrun itself). It needs no pytest and no network.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import torch.distributed as dist
from torch import Tensor

from nemorun.training.attention import (
    Documents,
    attend,
    join_sequence,
    kernel_name,
    ring,
    ring_attend,
    split_sequence,
)
from nemorun.training.attention.blocks import BlockKernel, Cudnn, Flash, Products, block_kernel
from tests.gpu.measuring import (
    CUDA,
    DEVICE,
    HALF,
    LARGE,
    LENGTH,
    exact,
    failures,
    packed,
    report,
    said,
    tensors,
    timed,
    with_gradients,
)


def whole_sequences() -> None:
    compiled = torch.compile(
        lambda *x: attend(*x) * 1, fullgraph=True, backend="inductor" if CUDA else "aot_eager"
    )
    for dtype in (HALF, torch.float32):
        inputs = tensors(dtype=dtype)
        for positions in (None, packed()):
            kind = "rows of one document" if positions is None else "packed rows"
            documents = None if positions is None else Documents(positions, DEVICE)
            wanted = exact(inputs, documents)
            used = kernel_name(inputs[0], positions is not None)
            for how, function in (("eager", attend), ("compiled", compiled)):
                with said(f"{kind}, {dtype}, {how}"):
                    got = with_gradients(function, inputs, documents)
                    took = timed(lambda f=function, i=inputs, d=documents: with_gradients(f, i, d))
                    report(f"{kind}, {dtype}, {how} ({used})", got, wanted, dtype, took)
    with said("compilations"):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        inputs = tensors()
        for seed in range(1, 9):
            positions = packed(seed=seed, longest=[LENGTH, 8, 100, LENGTH // 8][seed % 4])
            documents = Documents(positions, DEVICE)
            got = with_gradients(compiled, inputs, documents)
            if seed > 5:
                report(f"compiled, batch {seed}", got, exact(inputs, documents), HALF, 0.0)
        print(f"      compiled {torch._dynamo.utils.counters['stats']['unique_graphs']} times for 8 batches")


def large_times() -> None:
    inputs = tensors(*LARGE)
    for name, positions in (
        ("one document", None),
        ("documents of up to 8,192", packed(*LARGE, longest=LARGE[1])),
        ("documents of up to 1,024", packed(*LARGE, longest=LARGE[1] // 8)),
    ):
        documents = None if positions is None else Documents(positions, DEVICE)
        with said(name):
            took = timed(lambda d=documents: with_gradients(attend, inputs, d))
            print(f"      {LARGE[0]} x {LARGE[1]}, {name}: {took:.2f} ms forward and backward", flush=True)


def blocks() -> None:
    query, key, value, grad = tensors()
    documents = Documents(packed(), DEVICE)
    half = LENGTH // 2
    odd = slice(LENGTH // 3 + 1, LENGTH - 5)
    kernels: list[type[BlockKernel]] = [Flash, Cudnn] if CUDA else [Products]
    for kernel in kernels:
        for name, queries, keys, causal, packs in (
            ("causal", slice(None), slice(None), True, None),
            ("late queries, all keys", slice(half, None), slice(None), False, None),
            ("all queries, early keys", slice(None), slice(0, half), False, None),
            ("odd rectangle", slice(0, 77 if CUDA else 7), odd, False, None),
            ("documents", slice(None), slice(None), True, documents),
        ):
            if packs and kernel is Cudnn:
                continue
            with said(f"{kernel.__name__}, {name}"):
                fast, plain = kernel(), Products()
                given = query[:, queries], key[:, keys], value[:, keys]
                in_float = [x.float() for x in given]
                out, lse = fast.forward(*given, causal, packs)
                wanted, wanted_lse = plain.forward(*in_float, causal, packs)
                last = grad[:, queries]
                grads = fast.backward(last, *given, out, lse, causal, packs)
                expected = plain.backward(last.float(), *in_float, wanted, wanted_lse, causal, packs)
                took = timed(
                    lambda f=fast, g=given, la=last, c=causal, p=packs: f.backward(
                        la, *g, *f.forward(*g, c, p), c, p
                    )
                )
                report(
                    f"{kernel.__name__}, {name}",
                    [out, lse, *grads],
                    [wanted, wanted_lse, *expected],
                    HALF,
                    took,
                )


class PassedOnByThreads:
    """Stands for what goes from rank to rank, where all ranks are threads on one card."""

    boxes: dict[tuple[int, int], queue.Queue[Tensor]]

    def __init__(self, sent: Tensor, group: Any) -> None:
        self.box = self.boxes[(group.rank - 1) % group.size, group.rank]
        self.boxes[group.rank, (group.rank + 1) % group.size].put(sent.clone())

    def wait(self) -> Tensor:
        return self.box.get(timeout=60)


def ring_of_threads(size: int, inputs: list[Tensor], positions: Tensor | None) -> list[Tensor]:
    """Output and gradients of whole rows. Without autograd, which has one thread for a card."""
    results: list[Any] = [None] * size
    PassedOnByThreads.boxes = {(r, (r + 1) % size): queue.Queue() for r in range(size)}

    def rank_of(rank: int) -> None:
        group: Any = SimpleNamespace(rank=rank, size=size)
        documents = None if positions is None else Documents(positions, DEVICE, rank, size)
        query, key, value, grad = (split_sequence(x, rank, size) for x in inputs)
        ctx: Any = SimpleNamespace()
        ctx.save_for_backward = lambda *saved: setattr(ctx, "saved_tensors", saved)
        try:
            with torch.no_grad():
                out = ring._RingAttention.forward(ctx, query, key, value, documents, group)
                results[rank] = [out, *ring._RingAttention.backward(ctx, grad)[:3]]
        except BaseException as error:
            results[rank] = error
            raise

    threads = [threading.Thread(target=rank_of, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [join_sequence(list(shares)) for shares in zip(*results, strict=True)]


def rings_of_threads() -> None:
    real = ring._PassedOn, ring.dist
    ring._PassedOn = PassedOnByThreads  # type: ignore[assignment,misc]
    ring.dist = SimpleNamespace(  # type: ignore[assignment]
        get_rank=lambda group: group.rank, get_world_size=lambda group: group.size
    )
    for dtype in (HALF, torch.float32):
        inputs = tensors(dtype=dtype)
        for size in (2, 4):
            for positions in (None, packed(), packed(longest=LENGTH // 16)):
                kind = "one document" if positions is None else f"{int((positions == 0).sum())} documents"
                used = type(block_kernel(inputs[0], positions is not None)).__name__
                with said(f"ring of {size} threads, {kind}, {dtype}"):
                    got = ring_of_threads(size, inputs, positions)
                    documents = None if positions is None else Documents(positions, DEVICE)
                    report(
                        f"ring of {size} threads, {kind}, {dtype} ({used})",
                        got,
                        exact(inputs, documents),
                        dtype,
                        0,
                    )
    ring._PassedOn, ring.dist = real  # type: ignore[misc]


def ring_through_nccl() -> None:
    """What each process of torchrun does."""
    if CUDA:
        torch.cuda.set_device(DEVICE)
    dist.init_process_group("nccl" if CUDA else "gloo")
    rank, size, group = dist.get_rank(), dist.get_world_size(), dist.group.WORLD
    # A block as a model has it: compiled round the ring, which breaks it.
    compiled = torch.compile(
        lambda q, k, v, d: ring_attend(q * 1, k, v, d, group) * 1, backend="inductor" if CUDA else "aot_eager"
    )
    for positions in (None, packed()):
        inputs = tensors()
        wanted = exact(inputs, None if positions is None else Documents(positions, DEVICE))
        documents = None if positions is None else Documents(positions, DEVICE, rank, size)
        shares = [split_sequence(x, rank, size) for x in inputs]
        for how, function in (("eager", lambda *x: ring_attend(*x, group)), ("compiled", compiled)):
            kind = "packed" if documents else "whole"
            name = f"ring through {dist.get_backend()}, rank {rank} of {size}, {kind}, {how}"
            with said(name):
                got = with_gradients(function, shares, documents)
                took = timed(lambda f=function, s=shares, d=documents: with_gradients(f, s, d))
                report(name, got, [split_sequence(x, rank, size) for x in wanted], HALF, took)
    with said("time of a large ring"):
        shares = [split_sequence(x, rank, size) for x in tensors(LARGE[0], 2 * LARGE[1])]
        took = timed(lambda: with_gradients(lambda *x: ring_attend(*x, None, group), shares))
        print(
            f"      ring, rank {rank} of {size}: {LARGE[0]} x {2 * LARGE[1]} tokens in {took:.2f} ms",
            flush=True,
        )
    dist.barrier()
    dist.destroy_process_group()


def main() -> int:
    if "WORLD_SIZE" in os.environ:
        ring_through_nccl()
        return bool(failures)
    print(f"torch {torch.__version__} on {torch.cuda.get_device_name() if CUDA else 'the CPU'}")
    blocks()
    whole_sequences()
    rings_of_threads()
    large_times()
    for ranks in range(1, min(torch.cuda.device_count() if CUDA else 2, 2) + 1):
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone"]
        if subprocess.run([*command, __file__, *sys.argv[1:]], timeout=200).returncode:
            failures.append(f"ring of {ranks} ranks")
    print(f"{len(failures)} wrong: {failures}" if failures else "all right")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
