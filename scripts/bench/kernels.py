"""Where a GPU's time went: one line for each kernel of a torch profile, the longest first."""

from __future__ import annotations

from typing import Any


def kernel_table(profiler: Any) -> str:
    """Each kernel's time in all, its calls, the time of one, and its name; the sum first.

    Without a GPU, operators instead of kernels.
    """
    from torch.autograd import DeviceType

    events = profiler.key_averages()
    kernels = [e for e in events if e.device_type == DeviceType.CUDA and e.self_device_time_total]
    if kernels:
        found = [(e.self_device_time_total, e.count, e.key) for e in kernels]
    else:
        found = [(e.self_cpu_time_total, e.count, e.key) for e in events]
    lines = [f"{sum(time for time, *_ in found) / 1000:10.2f} ms in all"]
    if kernels:
        lines.append(f"{_idle(profiler) / 1000:10.2f} ms between them in which the GPU had nothing to do")
    for time, count, name in sorted(found, reverse=True):
        lines.append(f"{time / 1000:10.3f} ms {count:6} x {time / count:10.1f} us  {name[:160]}")
    return "\n".join(lines)


def _idle(profiler: Any) -> float:
    """Microseconds from the first kernel's start to the last one's end in which none ran."""
    from torch.autograd import DeviceType

    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    )
    idle, until = 0.0, spans[0][0]
    for start, end in spans:
        idle += max(0.0, start - until)
        until = max(until, end)
    return idle
