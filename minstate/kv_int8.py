"""Keys and values in 8 bits: a vector of D numbers becomes D integers and the scale that they share.

    scale = max |x| / 127        q = round(x / scale)        x ≈ scale · q

A vector is the key or the value of one token for one KV head. Its scale lies right behind it, as the four bytes of a
float32: a row of the pool is D + 4 bytes, and to copy, store or move rows one need not know what they hold. As
every vector has a scale of its own, a token that is appended changes nothing that was stored before. The error of a
number is at most half a scale, 1 / 254 of the largest number of its vector.

Keys have some dimensions that are much larger than the others, so it is finer to scale keys by dimension
([KIVI](https://arxiv.org/abs/2402.02750)). But such a scale depends on tokens that come later. With 8 bits the simple
way is good enough; how good, the benchmark `kv_int8` measures.
"""

import torch

SCALE_BYTES = 4


def row_width(head_dim: int, dtype: torch.dtype) -> int:
    """How many numbers of `dtype` a vector takes in the pool."""
    return head_dim + SCALE_BYTES if dtype == torch.int8 else head_dim


def quantise(x: torch.Tensor) -> torch.Tensor:
    """Vectors `[..., D]` as rows of 8 bits `[..., D + 4]`. A vector that is not finite becomes NaN when it is read."""
    x = x.float()
    scale = x.abs().amax(-1, keepdim=True) / 127
    q = (x / scale.where(scale != 0, 1)).nan_to_num(0).round().to(torch.int8)
    return torch.cat([q, scale.where(scale.isfinite(), torch.nan).view(torch.int8)], -1)


def dequantise(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rows `[..., D + 4]` as vectors `[..., D]`."""
    scale = rows[..., -SCALE_BYTES:].contiguous().view(torch.float32)
    return (rows[..., :-SCALE_BYTES].float() * scale).to(dtype)


def store(rows: torch.Tensor, slots: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Store keys or values x `[T, H_kv, D]` in the pool's rows `[H_kv, slots, width]`; returns x as it will be read."""
    stored = quantise(x) if rows.dtype == torch.int8 else x
    rows.index_copy_(1, slots, stored.transpose(0, 1))
    return vectors(stored, x.dtype)


def vectors(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rows of the pool `[..., width]`, in 8 bits or as they are, as vectors `[..., D]`."""
    return dequantise(rows, dtype) if rows.dtype == torch.int8 else rows
