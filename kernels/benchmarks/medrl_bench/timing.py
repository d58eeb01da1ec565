"""How long a call takes and what memory it needs: repeated in turns, cold caches, a time box, a budget.

On CUDA a time is the device's own: two events around the call, behind a queue of cache flushes long enough
that the host has issued the launches before the device reaches them. A call that waits for the device inside
(a metric read with `.item()`) shows that wait, as it would in training.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch

from medrl_bench.rows import Spread, percentile, spread

Call = Callable[[], object]
MIN_REPEATS, MAX_REPEATS = 20, 200
FEW_REPEATS = 5  # of a call so slow that MIN_REPEATS would take more than SLOW boxes
SLOW = 4
HEAD_START_MS = 1.0
WALL_REPEATS = 5
MIB = 2**20


class Timer(Protocol):
    """Runs a call once and says how many milliseconds it took."""

    def __call__(self, call: Call) -> float: ...


class Budget:
    """Seconds left of a fixed time."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.end = clock, clock() + seconds

    def left_s(self) -> float:
        """Seconds until the end; negative after it."""
        return self.end - self.clock()


class Timing(NamedTuple):
    """Spread of the repeats in milliseconds, and how many there were."""

    ms: Spread
    repeats: int


class HostTimer:
    """The host's clock around a call."""

    def __call__(self, call: Call) -> float:
        begin = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - begin)


class CudaTimer:
    """Device time of a call that starts with its inputs out of the L2 cache."""

    def __init__(self, device: torch.device) -> None:
        size = max(64 * MIB, 4 * torch.cuda.get_device_properties(device).L2_cache_size)
        self.scratch = torch.empty(size, dtype=torch.int8, device=device)
        self.flushes = 1
        self(lambda: None)
        self.flushes = max(1, math.ceil(HEAD_START_MS / max(self(self.scratch.zero_), 1e-3)))

    def __call__(self, call: Call) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        for _ in range(self.flushes):
            self.scratch.zero_()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end)


def timer_for(device: torch.device) -> Timer:
    """The timer of a kind of device."""
    return CudaTimer(device) if device.type == "cuda" else HostTimer()


def measure_in_turns(
    calls: Mapping[str, Call], timer: Timer, box_s: float, budget: Budget
) -> dict[str, Timing]:
    """Time the calls in turns, so that a drift of the machine meets all of them alike.

    Each call runs once unmeasured, then at least MIN_REPEATS times and for box_s seconds, but a slow one only
    FEW_REPEATS times, and a call that has been measured FEW_REPEATS times stops when the budget is used up.
    """
    for call in calls.values():
        timer(call)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    spent_s = dict.fromkeys(calls, 0.0)
    active = list(calls)
    while active:
        for name in active:
            begin = time.perf_counter()
            samples[name].append(timer(calls[name]))
            spent_s[name] += time.perf_counter() - begin
        over = budget.left_s() <= 0
        active = [name for name in active if not enough(len(samples[name]), spent_s[name], box_s, over)]
    return {name: Timing(spread(values), len(values)) for name, values in samples.items()}


def enough(repeats: int, spent_s: float, box_s: float, over: bool) -> bool:
    """Whether a call has been measured often enough."""
    if repeats >= MAX_REPEATS or (repeats >= MIN_REPEATS and spent_s >= box_s):
        return True
    return repeats >= FEW_REPEATS and (over or spent_s >= SLOW * box_s)


def wall_ms(call: Call) -> float:
    """Median on the host's clock of a call on CUDA with nothing queued before it and nothing left after."""
    times = []
    for _ in range(WALL_REPEATS):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - begin))
    return percentile(times, 0.5)


def peak_mib(call: Call) -> float:
    """Most memory that the allocator had given out during a call, above what it had before."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MIB


def launches(call: Call) -> int:
    """Kernels that one call launched on the CUDA device; copies and fills by the driver are not among
    them."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    cuda = torch.autograd.DeviceType.CUDA
    names = [event.name for event in profile.events() or [] if event.device_type == cuda]
    return sum(not name.startswith(("Memcpy", "Memset")) for name in names)
