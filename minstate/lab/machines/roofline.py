"""The shortest time that a piece of work can take on this machine, by its arithmetic and the bytes that it reads.

The roofline model (Williams, Waterman, Patterson, CACM 52(4), 2009): work takes as long as its arithmetic or its memory
traffic, whichever takes longer. Two rates describe the machine, and both are measured, not taken from a data sheet.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class Roofline:
    """The highest rates that a machine reaches."""

    flops_per_s: float
    bytes_per_s: float  # read from memory

    @property
    def ridge(self) -> float:
        """FLOPs per byte above which arithmetic, not memory, sets the time."""
        return self.flops_per_s / self.bytes_per_s

    def floor_s(self, flops: float, bytes_read: float) -> float:
        """Seconds that the work takes at least, if arithmetic and reading overlap perfectly."""
        return max(flops / self.flops_per_s, bytes_read / self.bytes_per_s)


def measure_roofline(
    dtype: torch.dtype = torch.float32, *, size: int = 1024, megabytes: int = 256, repeats: int = 20
) -> Roofline:
    """On torch's present threads: a square matrix product, and the sum of a tensor too large for any cache.

    The product is in `dtype`, or in float32 where that is faster: numbers of `dtype` can be widened first. The fastest
    of the repeats counts: noise only ever makes a run slower, and a floor should be hard to beat.
    """

    def product_s(dtype: torch.dtype) -> float:
        a, b = torch.ones(2, size, size, dtype=dtype)
        return min(seconds_each(lambda: F.linear(a, b), repeats=repeats))

    large = torch.ones(megabytes * 1_000_000 // torch.float32.itemsize)
    read_s = min(seconds_each(large.sum, repeats=repeats))
    flops_per_s = 2 * size**3 / min(map(product_s, {dtype, torch.float32}))
    return Roofline(flops_per_s, bytes_per_s=large.nbytes / read_s)


class CountOperations(TorchDispatchMode):
    """Counts torch operations in a `with` block, views included: the overhead of each adds up."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        """Count the operation, and call it."""
        self.count += 1
        return operation(*args, **(kwargs or {}))


def seconds_each(work: Callable[[], object], *, repeats: int, warmup: int = 1) -> list[float]:
    """Wall time of each of `repeats` calls of `work()`, after `warmup` calls that are not timed."""
    seconds = []
    for _ in range(warmup + repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return seconds[warmup:]
