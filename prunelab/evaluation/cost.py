"""What a piece of work cost: seconds, peak memory, threads, tokens per second.

These numbers describe one run on one machine; they are never part of a result's identity.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

GIB = 2**30


@dataclass
class Cost:
    """Filled in when the work is done. ``tokens`` is set by the work itself; 0 leaves the rate out.

    ``peak_gib``: highest resident memory of the process. ``peak_is_own`` says whether that peak was reset
    at the start: where the system does not allow it, the peak is that of the process' whole life.
    ``peak_gpu_gib``: highest allocated GPU memory, None without CUDA.
    """

    seconds: float = 0.0
    peak_gib: float = 0.0
    peak_is_own: bool = False
    peak_gpu_gib: float | None = None
    threads: int = 0
    tokens: int = 0

    def values(self) -> dict[str, float | int]:
        """Flat numbers for a record: seconds, peak_gib, threads, and where known peak_gpu_gib and
        tokens_per_s.
        """
        values: dict[str, float | int] = {
            "seconds": self.seconds,
            "peak_gib": self.peak_gib,
            "threads": self.threads,
        }
        if self.peak_gpu_gib is not None:
            values["peak_gpu_gib"] = self.peak_gpu_gib
        if self.tokens and self.seconds > 0:
            values["tokens_per_s"] = self.tokens / self.seconds
        return values


@contextmanager
def metered() -> Iterator[Cost]:
    """Measure the body of a ``with``; the yielded Cost is complete once the body has ended, also by an
    error.
    """
    cost = Cost(threads=torch.get_num_threads(), peak_is_own=reset_peak())
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    try:
        yield cost
    finally:
        if on_gpu:
            torch.cuda.synchronize()
            cost.peak_gpu_gib = torch.cuda.max_memory_allocated() / GIB
        cost.seconds = time.perf_counter() - start
        cost.peak_gib = peak_gib()


def reset_peak() -> bool:
    """Make the kernel forget this process' peak memory (Linux: 5 to clear_refs); False where that is
    impossible.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_gib() -> float:
    """Highest resident memory since the last reset, in GiB; over the process' life where the system counts
    no other.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / GIB
    except (OSError, ValueError):
        pass
    # ru_maxrss is in KiB on Linux and in bytes on macOS
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
