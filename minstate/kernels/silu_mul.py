"""The gate of the MLP: silu(g) · u, of g and u that lie side by side in the rows of one matrix product.

    silu(g) = g / (1 + e^{−g})

As two operations, torch writes silu(g) and reads it again: five rows are moved. Here three rows are moved: g and u are
read, and the product is written. It is computed in float32 and rounded once.
"""

import torch
import triton
import triton.language as tl

BLOCK = 1024  # numbers of one program: 8 for each of 128 threads, so in 16 bits a thread reads 16 bytes each of g and u


@triton.jit
def silu_mul_kernel(gate_up, out, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Program (token, block of its numbers)."""
    token = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_up + token * 2 * SIZE + i, mask=i < SIZE).to(tl.float32)
    up = tl.load(gate_up + token * 2 * SIZE + SIZE + i, mask=i < SIZE).to(tl.float32)
    tl.store(out + token * SIZE + i, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=i < SIZE)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(g) · u `[T, size]` of gate_up `[T, 2 · size]`, whose rows hold g first and then u."""
    tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    assert gate_up.is_contiguous()
    out = gate_up.new_empty(tokens, size)
    silu_mul_kernel[tokens, triton.cdiv(size, BLOCK)](gate_up, out, size, BLOCK, num_warps=4)
    return out
