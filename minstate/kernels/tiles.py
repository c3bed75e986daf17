"""How a launch of paged attention is cut up: decided on the host, from what it knows without asking the device.

Sizes were chosen by compiling for sm_80 and sm_90 and reading registers, spills and shared memory off the machine code
(`tests/kernels/test_machine_code.py` holds them to that).
"""

from typing import NamedTuple

import torch
import triton

FEWEST_KEYS = 256  # that are worth a part of their own: a start and a merge cost as much as reading some keys
LONGEST_PART = 16_384  # keys: a decode among long prompts would else be one program, for which all others wait
MOST_SPLITS = 64


class Tiles(NamedTuple):
    """Of one program: its rows, the keys that it reads at once, its warps, and the compiler's pipeline stages."""

    rows: int
    keys: int
    warps: int
    stages: int


def tile_sizes(head_dim: int, dtype: torch.dtype, rows: int) -> Tiles:
    """For sequences with up to `rows` rows of `head_dim` numbers.

    rows    as few as hold them: at least the 16 of a tensor core's smallest product; at most what leaves a thread 64
            registers of sums, or 32 if a head must be padded, for the masks. float32 has no tensor cores, and its
            products want registers too: at most 32
    keys    16 KiB of K in 16 bits, which with V and a second tile of each leaves room for 2 or 3 programs on a
            multiprocessor: enough under way to keep its memory busy. In float32 half, for want of registers
    warps   one for each of a multiprocessor's 4 schedulers, or two, to share the registers of a large tile
    stages  5: a tile's page ids must be there before its K and V can be asked for. Each of the two waits is worth a
            tile of its own, and the compiler splits the stages evenly: 4 would leave none for K and V
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
    """The power of 2 that holds a head, at least 16: `tl.dot` wants that much."""
    return max(16, triton.next_power_of_2(head_dim))


def busy_programs(
    shape: tuple[int, int, int], dtype: torch.dtype, kv_heads: int, *, sequences: int, max_queries: int
) -> int:
    """About how many programs have something to do for q of this shape `[T, H, D]` if the keys are not split."""
    tokens, heads, head_dim = shape
    group = heads // kv_heads
    return max(sequences, tokens * group // tile_sizes(head_dim, dtype, max_queries * group).rows) * kv_heads


def split_count(programs: int, context: int, multiprocessors: int) -> int:
    """Parts to cut the keys into, where a launch has `programs` without, and contexts of up to `context` tokens.

    Enough for two programs on each multiprocessor; a power of 2, since each count is a kernel of its own to compile.
    Each sequence cuts its own keys into so many parts, on the device: a count stays valid as contexts grow.
    """
    wanted = max(2 * multiprocessors // programs, context // LONGEST_PART)
    worthwhile = min(wanted, context // FEWEST_KEYS, MOST_SPLITS)
    return 1 << (max(1, worthwhile).bit_length() - 1)
