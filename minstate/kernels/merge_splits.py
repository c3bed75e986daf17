"""Split-KV, or Flash-Decoding: several programs share one sequence's keys, and this kernel merges their outputs.

Why. When one sequence decodes, there is one program for each KV head, but an H100 has 132 multiprocessors, and most of
them would have nothing to do. Splitting the keys makes as many programs as it takes to read at full speed.

How. Each split gives an output o and lse = log2 Σ_j 2^{s_j}, the log of its sum of exponentiated scores (see
`paged_attention.py`). The unnormalised output of a split is 2^lse · o. Unnormalised outputs add up, and so do the sums.
So two splits merge into

    (o, lse) ⊕ (o', lse') = ((2^lse · o + 2^lse' · o') / (2^lse + 2^lse'),  log2(2^lse + 2^lse'))

⊕ is associative and commutative. A split without keys has lse = −∞, and therefore the weight 0. The kernel merges all
splits at once. With m the greatest lse, which keeps the powers from overflowing, the output is

    o = Σ_i 2^{lse_i − m} · o_i / Σ_i 2^{lse_i − m}

as in [Flash-Decoding](https://pytorch.org/blog/flash-decoding/).
"""

import torch
import triton
import triton.language as tl


@triton.jit
def merge_kernel(parts, lse_at, out, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr):
    """Program (one head of one token): the ⊕ of its splits."""
    row = tl.program_id(0).to(tl.int64)
    dim = tl.arange(0, WIDTH)
    index = row * SPLITS + tl.arange(0, SPLITS)
    lse = tl.load(lse_at + index)
    weight = tl.exp2(lse - tl.max(lse, 0))
    has_keys = (lse > float("-inf"))[:, None] & (dim < HEAD_DIM)[None, :]
    part = tl.load(parts + index[:, None] * HEAD_DIM + dim[None, :], mask=has_keys, other=0.0)
    o = tl.sum(part * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(out + row * HEAD_DIM + dim, o.to(out.dtype.element_ty), mask=dim < HEAD_DIM)


def merge_splits(parts: torch.Tensor, lse: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Merged outputs `[T, H, D]` of `dtype`, from parts `[T, H, splits, D]` and lse `[T, H, splits]`, both float32.

    Where lse is −∞, the output of that split is not read: it may never have been written.
    """
    tokens, heads, splits, head_dim = parts.shape
    out = parts.new_empty(tokens, heads, head_dim, dtype=dtype)
    merge_kernel[tokens * heads,](parts, lse, out, head_dim, triton.next_power_of_2(head_dim), splits, num_warps=4)
    return out
