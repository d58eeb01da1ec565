"""Most memory that a call needs above what was there: the CUDA allocator's, or the process's on a CPU.

On a CPU this is the growth of resident memory. So that it is what tensors take, and not what the C library
kept of freed ones, large blocks are taken from the system and given back one by one meanwhile.
"""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

PROCESS = Path("/proc/self")
GIB = 2**30
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # options of mallopt


def peak_gib(call: Callable[[], object], device: torch.device) -> float | None:
    """GiB above those before the call; None on a CPU without Linux's /proc."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / GIB
    with nothing_kept():
        before = resident("VmRSS")
        known = forget_peak()
        call()
        after = resident("VmHWM")
    return (after - before) / GIB if known and before is not None and after is not None else None


@contextmanager
def nothing_kept() -> Iterator[None]:
    """glibc asks the system for every block above 64 KiB; afterwards it keeps them as it does by itself."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(MMAP_THRESHOLD, 2**16)
        libc.malloc_trim(0)
    except (OSError, AttributeError):  # another C library
        libc = None
    yield
    if libc is not None:
        libc.mallopt(MMAP_THRESHOLD, 2**25)
        libc.mallopt(TRIM_THRESHOLD, 2**26)


def resident(name: str) -> int | None:
    """Bytes of resident memory now (VmRSS) or at most so far (VmHWM)."""
    status = PROCESS / "status"
    found = re.search(rf"^{name}:\s+(\d+) kB", status.read_text(), re.M) if status.exists() else None
    return int(found.group(1)) * 1024 if found else None


def forget_peak() -> bool:
    """Sets the high-water mark back to what is resident now; False where that is not allowed."""
    try:
        (PROCESS / "clear_refs").write_text("5")
    except OSError:
        return False
    return True
