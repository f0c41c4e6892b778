"""Tensors leave the device without holding up training: into pinned memory, beside the next step's work.

The copy needs the weights and moments only until the optimizer changes them. So training goes on at once, and
the device waits, if at all, just before the next update: a step of forward and backward is longer than the
copy. The memory is taken once and used again by every save.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner, WriteItem
from torch.optim import Optimizer

from nemorun.training.checkpoint.state import local

_ALIGNMENT = 256


class Staging:
    """Copies tensors of `device` into memory of the host."""

    def __init__(self, device: torch.device, optimizers: Iterable[Optimizer]) -> None:
        self._device = device
        self._layout: dict[str, tuple[int, torch.Size, torch.dtype]] = {}
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._copied: torch.cuda.Event | None = None
        self._waited: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        for optimizer in optimizers:
            optimizer.register_step_pre_hook(lambda *_: self._before_update())

    @property
    def prepared(self) -> bool:
        return bool(self._layout)

    def prepare(self, tensors: dict[str, Tensor]) -> None:
        """Take memory for them. It takes seconds for tens of GiB, which are zeroed and pinned."""
        layout = {}
        end = 0
        for name, tensor in tensors.items():
            part = local(tensor)
            layout[name] = (end, part.shape, part.dtype)
            end += -(-part.nbytes // _ALIGNMENT) * _ALIGNMENT
        if layout == self._layout:
            return
        if end > self._memory.numel():
            self._release()
            self._memory = _take(end, pinned=self._stream is not None)
        self._layout = layout

    def copy(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """This rank's parts of the tensors, on the host; whole as soon as `wait()` has returned."""
        self.prepare(tensors)
        copies = {name: self._place(name) for name in tensors}
        self._waited.clear()
        if self._stream is None:
            for name, tensor in tensors.items():
                copies[name].copy_(local(tensor))
            return copies
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for name, tensor in tensors.items():
                copies[name].copy_(local(tensor), non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record(self._stream)
        return copies

    def wait(self) -> None:
        """Until all is copied. Other threads run meanwhile."""
        if self._copied is not None:
            self._copied.synchronize()

    def seconds_waited(self) -> float:
        """How long the device waited before the update that followed the last copy, as far as is known."""
        return sum(start.elapsed_time(end) / 1000 for start, end in self._waited if end.query())

    def _before_update(self) -> None:
        """Called before each step of an optimizer: what is still being copied must not change."""
        if self._copied is None or self._copied.query():
            return
        stream = torch.cuda.current_stream(self._device)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record(stream)
        stream.wait_event(self._copied)
        end.record(stream)
        self._waited.append((start, end))

    def _place(self, name: str) -> Tensor:
        begin, shape, dtype = self._layout[name]
        size = shape.numel() * dtype.itemsize
        return self._memory[begin : begin + size].view(dtype).view(shape)

    def _release(self) -> None:
        if self._stream is not None and self._memory.numel():
            self.wait()
            torch.cuda.check_error(int(torch.cuda.cudart().cudaHostUnregister(self._memory.data_ptr())))
        self._memory = torch.empty(0, dtype=torch.uint8)


class StagedPlanner(DefaultSavePlanner):
    """Plans with the tensors of the run, of which it needs but the shapes, and writes the copies."""

    def __init__(self, copies: dict[str, Tensor] | None) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._copies = copies

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        name = write_item.index.fqn
        part = local(self.state_dict[name]).cpu() if self._copies is None else self._copies[name]
        assert write_item.tensor_data is not None
        if part.shape != write_item.tensor_data.chunk.sizes:
            raise ValueError(f"{name} is {tuple(part.shape)} here, and planned as {write_item.tensor_data}")
        return part


def free_memory() -> int:
    """Bytes that this machine, and the control group of this process, can still give."""
    found = [1 << 62]
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    group = Path("/sys/fs/cgroup")
    limit, used = _lines(group / "memory.max"), _lines(group / "memory.current")
    if limit and used and limit[0] != "max":
        stat = _lines(group / "memory.stat")
        cache = [int(line.split()[1]) for line in stat if line.startswith("inactive_file ")]
        found.append(int(limit[0]) - int(used[0]) + sum(cache))
    return min(found)


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _take(size: int, pinned: bool) -> Tensor:
    """Memory in large pages, which is zeroed and pinned faster than torch's own (and not rounded up)."""
    memory = mmap.mmap(-1, max(size, 1))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    tensor = torch.frombuffer(memory, dtype=torch.uint8)
    tensor.zero_()
    if pinned:
        torch.cuda.check_error(int(torch.cuda.cudart().cudaHostRegister(tensor.data_ptr(), len(memory), 0)))
    return tensor
