"""RMS norm, fused with the addition to the residual that comes before it.

    y_i = w_i · x_i / √(mean(x²) + ε)

A norm takes about three operations a number, so it takes as long as moving the numbers does. As two operations, the
sum `x + residual` and its norm read three rows and write two, besides the weights, because the norm reads the sum
again. Fused, the sum is still in registers: the kernel reads two rows and writes two. A row has a few thousand numbers
and fits one program, so one reduction inside the program gives the mean.

The squares are summed in float32, whatever the dtype. The sum is rounded to the residual's dtype *before* its norm is
taken, so the result equals that of the two operations one after the other.

The norms of q and k (Qwen3) are the same computation on shorter rows: a row is one head, and each head has its own
weights. Several short rows share a program.
"""

import torch
import triton
import triton.language as tl

NUMBERS_AT_ONCE = 1024  # numbers of one program, unless a single row has more


@triton.jit(do_not_specialize=["tokens"])
def rms_norm_kernel(
    x_at, token_stride, residual_at, weight_at, out_at, tokens, eps,
    ADD: tl.constexpr, HEADS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Program (block of rows); a row is a token, or one head of it."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    head = row % HEADS
    i = tl.arange(0, WIDTH)[None, :]
    in_bounds = (row < tokens * HEADS)[:, None] & (i < SIZE)
    start = (row // HEADS) * token_stride + head * SIZE
    x = tl.load(x_at + start[:, None] + i, mask=in_bounds, other=0.0).to(tl.float32)
    if ADD:
        stored = residual_at + row[:, None] * SIZE + i
        total = (x + tl.load(stored, mask=in_bounds, other=0.0).to(tl.float32)).to(residual_at.dtype.element_ty)
        tl.store(stored, total, mask=in_bounds)
        x = total.to(tl.float32)
    weight = tl.load(weight_at + head[:, None] * SIZE + i, mask=in_bounds).to(tl.float32)
    y = x * tl.rsqrt(tl.sum(x * x, 1) / SIZE + eps)[:, None] * weight
    tl.store(out_at + row[:, None] * SIZE + i, y.to(out_at.dtype.element_ty), mask=in_bounds)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None) -> torch.Tensor:
    """The norm of x along its last dimension: contiguous, in the shape of x.

    x         `[T, size]` with weight `[size]`, or `[T, heads, size]` with weight `[heads, size]`
    residual  `[T, size]`: x is added to it in place, and the norm is that of the sum
    """
    tokens, size = x.shape[0], x.shape[-1]
    heads = x.shape[1] if x.ndim == 3 else 1
    assert x[0].is_contiguous() and weight.is_contiguous() and (residual is None or residual.is_contiguous())
    out = x.new_empty(x.shape)
    width = triton.next_power_of_2(size)
    rows = max(1, NUMBERS_AT_ONCE // width)
    warps = min(16, max(1, rows * width // 512))  # 16 numbers a thread, in several wide reads
    rms_norm_kernel[triton.cdiv(tokens * heads, rows),](
        x, x.stride(0), x if residual is None else residual, weight, out, tokens, eps,
        residual is not None, heads, size, width, rows, num_warps=warps,
    )  # fmt: skip
    return out
