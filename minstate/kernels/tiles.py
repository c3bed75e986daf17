"""How a launch of paged attention is divided into programs. The host decides, and need not ask the device for anything.

We chose the sizes by compiling for sm_80 and sm_90, and reading registers, spills and shared memory off the machine
code. `tests/kernels/test_machine_code.py` checks that they still hold.
"""

from typing import NamedTuple

import torch
import triton

MIN_SPLIT_KEYS = 256  # fewer keys are not worth a split, which costs a start and a merge
MAX_SPLIT_KEYS = 16_384  # else a decode in a batch with long prompts is one program, and all others wait for it
MAX_SPLITS = 64


class Tiles(NamedTuple):
    """The rows of one program, the keys that it reads at once, its warps, and the compiler's pipeline stages."""

    rows: int
    keys: int
    warps: int
    stages: int


def tile_sizes(head_dim: int, dtype: torch.dtype, rows: int) -> Tiles:
    """The tile sizes for sequences with up to `rows` rows of `head_dim` numbers.

    rows    As few as hold the sequence's rows. At least 16, because a tensor core's smallest product has 16. At most
            what keeps the sums of a thread in 64 registers, or in 32 if a head must be padded, since masks need
            registers too. In float32 at most 32, because products without tensor cores need registers.
    keys    16 KiB of K in 16 bits. With V, and a second tile of each, a multiprocessor then has room for 2 or 3
            programs, which keep its memory busy. In float32 half of that, because registers are short.
    warps   4, one for each scheduler of a multiprocessor; 8 where a large tile needs the registers of more threads.
    stages  5. The page ids of a tile must arrive before its K and V can be requested, and each of these two waits
            should overlap with the work on other tiles. The compiler divides the stages evenly between the two loads:
            4 would leave none for K and V.
    """
    width = width_of(head_dim)
    if dtype.itemsize > 2:
        rows, key_bytes = min(triton.next_power_of_2(rows), 32), 8 * 1024
    else:
        sums = 16_384 if width == head_dim else 8_192
        rows, key_bytes = min(triton.next_power_of_2(rows), sums // width, 128), 16 * 1024
    keys = max(16, min(128, key_bytes // (width * dtype.itemsize)))
    return Tiles(max(16, rows), keys, warps=4 if rows <= 32 and dtype.itemsize <= 2 else 8, stages=5)


def width_of(head_dim: int) -> int:
    """The smallest power of 2 that holds a head, and at least 16, which `tl.dot` requires."""
    return max(16, triton.next_power_of_2(head_dim))


def busy_programs(
    shape: tuple[int, int, int], dtype: torch.dtype, kv_heads: int, *, sequences: int, max_queries: int
) -> int:
    """About how many programs have work to do for q of shape `[T, H, D]` if the keys are not split."""
    tokens, heads, head_dim = shape
    group = heads // kv_heads
    return max(sequences, tokens * group // tile_sizes(head_dim, dtype, max_queries * group).rows) * kv_heads


def split_count(programs: int, context: int, multiprocessors: int) -> int:
    """How many splits of the keys a launch needs that has `programs` without, for contexts of up to `context` tokens.

    There are enough splits for two programs on each multiprocessor. The count is a power of 2, because each count is a
    kernel of its own to compile. Each program finds the bounds of its split on the device, so a count stays valid as
    contexts grow.
    """
    wanted = max(2 * multiprocessors // programs, context // MAX_SPLIT_KEYS)
    worthwhile = min(wanted, context // MIN_SPLIT_KEYS, MAX_SPLITS)
    return 1 << (max(1, worthwhile).bit_length() - 1)
