"""RMS norm, with the residual's addition where there is one.

    y_i = w_i x_i / √(mean(x²) + ε)

A norm does some three operations a number, so it costs what moving the numbers costs. Alone, `x + delta` followed by a
norm reads three rows and writes two, and reads the sum once more in between. Fused, the sum is still in registers: two
rows and the weights are read, the sum and its norm are written. A row fits one program (a few thousand numbers), so one
reduction inside it gives the mean.

The squares are summed in float32, whatever the dtype. A sum is rounded to the residual's dtype *before* its norm is
taken: the norm is that of the stored row, exactly as if both had been computed one after the other.

The norms of q and k (Qwen3) are the same thing on shorter rows: those of the heads, each with its own weights. Several
such rows share a program.
"""

import torch
import triton
import triton.language as tl

NUMBERS_AT_ONCE = 1024  # of one program, if a row has not more


@triton.jit(do_not_specialize=["tokens"])
def rms_norm_kernel(
    x_at, token_stride, residual_at, weight_at, out_at, tokens, eps,
    ADD: tl.constexpr, HEADS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Program (some rows); a row is a token, or one head of it."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    head = row % HEADS
    i = tl.arange(0, WIDTH)[None, :]
    there = (row < tokens * HEADS)[:, None] & (i < SIZE)
    start = (row // HEADS) * token_stride + head * SIZE
    x = tl.load(x_at + start[:, None] + i, mask=there, other=0.0).to(tl.float32)
    if ADD:
        stored = residual_at + row[:, None] * SIZE + i
        total = (x + tl.load(stored, mask=there, other=0.0).to(tl.float32)).to(residual_at.dtype.element_ty)
        tl.store(stored, total, mask=there)
        x = total.to(tl.float32)
    weight = tl.load(weight_at + head[:, None] * SIZE + i, mask=there).to(tl.float32)
    y = x * tl.rsqrt(tl.sum(x * x, 1) / SIZE + eps)[:, None] * weight
    tl.store(out_at + row[:, None] * SIZE + i, y.to(out_at.dtype.element_ty), mask=there)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None) -> torch.Tensor:
    """The norm of x along its last dimension, contiguous.

    x         `[T, size]` with weight `[size]`, or `[T, heads, size]` with weight `[heads, size]`
    residual  `[T, size]`, to which x is added, in place; the norm is then that of the sum
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
