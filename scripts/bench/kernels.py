"""Where a GPU's time went: one line for each kernel of a torch profile, the longest first."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

_PLACES = 12
"""Between how many pairs of kernels it is said that the GPU waited."""


def kernel_table(profiler: Any) -> str:
    """Each kernel's time in all, its calls, the time of one, and its name; the sum first.

    Last, between which kernels the GPU waited longest. Without a GPU, operators instead of kernels.
    """
    from torch.autograd import DeviceType

    events = profiler.key_averages()
    kernels = [e for e in events if e.device_type == DeviceType.CUDA and e.self_device_time_total]
    if kernels:
        found = [(e.self_device_time_total, e.count, e.key) for e in kernels]
    else:
        found = [(e.self_cpu_time_total, e.count, e.key) for e in events]
    lines = [f"{sum(time for time, *_ in found) / 1000:10.2f} ms in all"]
    waits = _waits(profiler) if kernels else {}
    if kernels:
        idle = sum(sum(times) for times in waits.values())
        lines.append(f"{idle / 1000:10.2f} ms between them in which the GPU had nothing to do")
    lines += [_line(time, count, name[:160]) for time, count, name in sorted(found, reverse=True)]
    longest = sorted(waits.items(), key=lambda item: -sum(item[1]))[:_PLACES]
    for (before, after), times in longest:
        lines.append(_line(sum(times), len(times), f"waited after {before[:60]} for {after[:60]}"))
    return "\n".join(lines)


def _line(time: float, count: int, what: str) -> str:
    return f"{time / 1000:10.3f} ms {count:6} x {time / count:10.1f} us  {what}"


def _waits(profiler: Any) -> dict[tuple[str, str], list[float]]:
    """Microseconds in which no kernel ran, by the kernels before and after."""
    from torch.autograd import DeviceType

    spans = sorted(
        (event.time_range.start, event.time_range.end, event.key)
        for event in profiler.events()
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    )
    waits = defaultdict(list)
    _, until, last = spans[0]
    for start, end, name in spans[1:]:
        if start > until:
            waits[last, name].append(start - until)
        if end > until:
            until, last = end, name
    return waits
