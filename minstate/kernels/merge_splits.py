"""Split-KV: several programs read one sequence's keys, each a part, and their outputs are merged.

Why.  Decoding one sequence gives each KV head one program, where an H100 runs 132 and more at a time: most of its
memory would stand idle. A split of the keys makes as many programs as it takes.

How.  A part of the keys gives the output o and lse = log2 Σ_j 2^{s_j} (see `paged_attention.py`). Two parts have the
sums 2^lse o and 2^lse' o', which add; so

    (o, lse) ⊕ (o', lse') = ((2^lse o + 2^lse' o') / (2^lse + 2^lse'), log2(2^lse + 2^lse'))

⊕ is associative and commutative, and an empty part has lse = −∞, whose weight is 0. All parts at once: with m the
greatest lse, o = Σ_i 2^{lse_i − m} o_i / Σ_i 2^{lse_i − m} (FlashDecoding).
"""

import torch
import triton
import triton.language as tl


@triton.jit
def merge_kernel(parts, lse_at, out, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr):
    """Program (token's head): the ⊕ of its parts."""
    row = tl.program_id(0).to(tl.int64)
    dim = tl.arange(0, WIDTH)
    place = row * SPLITS + tl.arange(0, SPLITS)
    lse = tl.load(lse_at + place)
    weight = tl.exp2(lse - tl.max(lse, 0))
    written = (lse > float("-inf"))[:, None] & (dim < HEAD_DIM)[None, :]
    part = tl.load(parts + place[:, None] * HEAD_DIM + dim[None, :], mask=written, other=0.0)
    o = tl.sum(part * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(out + row * HEAD_DIM + dim, o.to(out.dtype.element_ty), mask=dim < HEAD_DIM)


def merge_splits(parts: torch.Tensor, lse: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`[T, H, D]` of `dtype` from parts `[T, H, splits, D]` and lse `[T, H, splits]`, both float32.

    Where lse is −∞, the part's output is not read.
    """
    tokens, heads, splits, head_dim = parts.shape
    out = parts.new_empty(tokens, heads, head_dim, dtype=dtype)
    merge_kernel[tokens * heads,](parts, lse, out, head_dim, triton.next_power_of_2(head_dim), splits, num_warps=4)
    return out
