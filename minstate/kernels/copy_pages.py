"""Copy pages, or their first tokens, in all layers at once: for copy-on-write, and where a match ends inside a page.

The pool is `[layers, 2, H_kv, slots, D]`. One head of K or V in one layer is a *plane*, and a page is `page_size · D`
consecutive numbers in each plane; its first `count` tokens are the first `count · D` of them. So copying pages means
copying many short ranges that do not depend on each other. Program (copy, plane) copies one range, and a step needs one
launch however many pages it copies.

Nothing is computed, so the least possible cost is to read and write the bytes once. A block is 16 bytes for each of 128
threads, four times over, so that each thread has several reads under way.
"""

import torch
import triton
import triton.language as tl

BLOCK_BYTES = 4 * 128 * 16


@triton.jit
def copy_pages_kernel(
    kv, copies, slots, PAGE_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Program (copy, plane)."""
    copy = copies + tl.program_id(0) * 3
    plane = kv + tl.program_id(1).to(tl.int64) * slots * HEAD_DIM
    source = plane + tl.load(copy).to(tl.int64) * (PAGE_SIZE * HEAD_DIM)
    target = plane + tl.load(copy + 1).to(tl.int64) * (PAGE_SIZE * HEAD_DIM)
    numbers = tl.load(copy + 2) * HEAD_DIM
    for start in range(0, numbers, BLOCK):
        at = start + tl.arange(0, BLOCK)
        tl.store(target + at, tl.load(source + at, mask=at < numbers), mask=at < numbers)


def copy_pages(kv: torch.Tensor, copies: torch.Tensor, page_size: int) -> None:
    """Copy pages within kv `[layers, 2, H_kv, slots, D]`, in place.

    copies  `[C, 3]` integers on the same device: source page, target page, and how many of the first tokens to copy.
            The copies run in any order, so no page may be the target of two copies, or a target and a source
    """
    layers, two, kv_heads, slots, head_dim = kv.shape
    assert kv.is_contiguous() and copies.is_contiguous() and copies.shape[1] == 3
    if len(copies):
        copy_pages_kernel[len(copies), layers * two * kv_heads](
            kv, copies, slots, page_size, head_dim, BLOCK_BYTES // kv.itemsize, num_warps=4
        )
