"""Rotary embedding of q and k, fused with storing k and v in their slots: one launch between projection and attention.

Rotary embedding ([RoPE](https://arxiv.org/abs/2104.09864)) rotates dimensions d and d + D/2 together, by the angle that
belongs to the token's position. The first half becomes x[d] cos − x[d + D/2] sin, the second x[d + D/2] cos + x[d] sin.
`minstate.rotary.rotary_table` negates the sine of the first half, and then both are the same formula:

    y[d] = x[d] · cos[d] + x[(d + D/2) mod D] · sin[d]

Each number is computed once and used once, so the kernel takes as long as it takes to move the bytes. It reads q, k
and v once, writes q once, and writes k and v straight into their slots: no rotated k is ever written elsewhere. (A
program loads each number of q and k twice, as x[d] and as the partner of the other half. The second load hits the
cache.)

A row of the projection is [H heads of q | H_kv of k | H_kv of v]. A layer of the pool is [H_kv of K | H_kv of V], where
each head has `slots` times D numbers. So head h ≥ H of a row goes to head h − H of the pool, whether it is a key or a
value. In 8 bits each D numbers are followed by their scale: `minstate/kv_int8.py` has the formula.
"""

import torch
import triton
import triton.language as tl

HEADS_AT_ONCE = 8  # heads of one program: enough work for a program of a long prompt, few enough to spread a decode


@triton.jit(do_not_specialize=["positions", "token_slots"])  # parts of a flat tensor, at any address
def append_kv_kernel(
    qkv_at, cos_at, sin_at, positions, token_slots, q_at, kv_at, slots,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, ROW: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (token, block of heads)."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    dim = tl.arange(0, WIDTH)
    in_bounds = (head < HEADS + 2 * KV_HEADS)[:, None] & (dim < HEAD_DIM)[None, :]
    start = (token * (HEADS + 2 * KV_HEADS) + head)[:, None] * HEAD_DIM
    x = tl.load(qkv_at + start + dim[None, :], mask=in_bounds, other=0.0).to(tl.float32)
    other_half = (dim + HEAD_DIM // 2) % HEAD_DIM
    partner = tl.load(qkv_at + start + other_half[None, :], mask=in_bounds, other=0.0).to(tl.float32)
    angle = tl.load(positions + token).to(tl.int64) * HEAD_DIM + dim
    cos = tl.load(cos_at + angle, mask=dim < HEAD_DIM).to(tl.float32)
    sin = tl.load(sin_at + angle, mask=dim < HEAD_DIM).to(tl.float32)
    rotated = x * cos[None, :] + partner * sin[None, :]
    y = tl.where((head < HEADS + KV_HEADS)[:, None], rotated, x)  # values are not rotated

    q_start = (token * HEADS + head)[:, None] * HEAD_DIM
    tl.store(q_at + q_start + dim[None, :], y.to(q_at.dtype.element_ty), mask=in_bounds & (head < HEADS)[:, None])
    slot = tl.load(token_slots + token).to(tl.int64)
    row_at = kv_at + ((head - HEADS).to(tl.int64) * slots + slot) * ROW
    to_pool = in_bounds & (head >= HEADS)[:, None] & (slot >= 0)
    if ROW > HEAD_DIM:  # 8 bits
        scale = tl.max(tl.abs(y), 1) / 127 + tl.sum(y * 0, 1)  # NaN if a number is not finite
        # Adding 1.5 · 2^23 leaves no fraction digits, so it rounds to an integer.
        y = tl.where((scale > 0)[:, None], y / scale[:, None] + 12582912.0 - 12582912.0, 0.0)
        scale_at = (row_at + HEAD_DIM).to(tl.pointer_type(tl.float32))
        tl.store(scale_at, scale, mask=(head >= HEADS) & (head < HEADS + 2 * KV_HEADS) & (slot >= 0))
    tl.store(row_at[:, None] + dim[None, :], y.to(kv_at.dtype.element_ty), mask=to_pool)


def append_kv(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    token_slots: torch.Tensor,
    kv: torch.Tensor,
) -> torch.Tensor:
    """Store rotated k, and v, of qkv `[T, H + 2 H_kv, D]` in `kv`, a layer of the pool; return rotated q `[T, H, D]`.

    cos, sin     `[positions, D]`, as `minstate.rotary.rotary_table` makes them
    positions    `[T]` each token's position in its own sequence
    token_slots  `[T]` where its K/V goes in kv `[2, H_kv, slots, D or D + 4]`; −1 for padding, which is not stored
    """
    tokens, rows, head_dim = qkv.shape
    _, kv_heads, slots, row = kv.shape
    assert qkv.is_contiguous() and kv.is_contiguous() and cos.is_contiguous() and sin.is_contiguous()
    q = qkv.new_empty(tokens, rows - 2 * kv_heads, head_dim)
    append_kv_kernel[tokens, triton.cdiv(rows, HEADS_AT_ONCE)](
        qkv, cos, sin, positions, token_slots, q, kv, slots,
        q.shape[1], kv_heads, head_dim, row, triton.next_power_of_2(head_dim), HEADS_AT_ONCE, num_warps=4,
    )  # fmt: skip
    return q
