"""The C++ kernels as functions of tensors: the names and contracts of the Triton kernels beside this folder.

Each function checks what its kernel takes for granted, allocates the output, and passes addresses. Tensors are on the
CPU, in float32 or bfloat16, a pool's also in int8.
"""

import ctypes
import math
from collections.abc import Callable
from functools import cache

import torch

from minstate.kernels.cpu.build import library

INT, LONG, FLOAT, POINTER = ctypes.c_int, ctypes.c_long, ctypes.c_float, ctypes.c_void_p
SIGNATURES = {
    "rms_norm": [POINTER, LONG, POINTER, POINTER, POINTER, INT, INT, INT, FLOAT],
    "append_kv": [*[POINTER] * 7, INT, INT, INT, INT, LONG],
    "paged_attention": [POINTER, LONG, *[POINTER] * 5, LONG, INT, INT, INT, INT, INT, LONG, FLOAT],
    "silu_mul": [POINTER, POINTER, INT, INT],
    "linear": [*[POINTER] * 4, INT, INT, INT],
}
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.int8: "int8"}


@cache
def kernel(name: str, *dtypes: torch.dtype) -> Callable[..., None]:
    """The compiled function for these dtypes: of the numbers, and of the pool for those that use it."""
    function = getattr(library(), "_".join([name, *(NAMES[dtype] for dtype in dtypes)]))
    function.argtypes, function.restype = SIGNATURES[name], None
    return function


PANEL = library().panel_width()  # outputs that `linear` computes side by side; raises `UnsupportedModel`
STEP = library().bfloat16_step()  # bfloat16 that one instruction multiplies for each output
LANES = PANEL // 2  # numbers of a vector: rows and heads must be whole vectors


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None) -> torch.Tensor:
    """As `minstate.kernels.rms_norm.rms_norm`."""
    heads = x.shape[1] if x.ndim == 3 else 1
    assert x[0].is_contiguous() and weight.is_contiguous() and (residual is None or residual.is_contiguous())
    out = x.new_empty(x.shape)
    stored = None if residual is None else residual.data_ptr()
    kernel("rms_norm", x.dtype)(
        x.data_ptr(), x.stride(0), stored, weight.data_ptr(), out.data_ptr(), x.shape[0], heads, x.shape[-1], eps
    )
    return out


def append_kv(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    token_slots: torch.Tensor,
    kv: torch.Tensor,
) -> torch.Tensor:
    """As `minstate.kernels.append_kv.append_kv`; positions and token_slots are int32."""
    tokens, rows, head_dim = qkv.shape
    _, kv_heads, slots, _ = kv.shape
    assert qkv.is_contiguous() and kv.is_contiguous() and cos.is_contiguous() and sin.is_contiguous()
    assert positions.dtype == token_slots.dtype == torch.int32
    q = qkv.new_empty(tokens, rows - 2 * kv_heads, head_dim)
    kernel("append_kv", qkv.dtype, kv.dtype)(
        qkv.data_ptr(), cos.data_ptr(), sin.data_ptr(), positions.data_ptr(), token_slots.data_ptr(), q.data_ptr(),
        kv.data_ptr(), tokens, q.shape[1], kv_heads, head_dim, slots,
    )  # fmt: skip
    return q


def paged_attention(
    q: torch.Tensor,
    kv: torch.Tensor,
    query_start: torch.Tensor,
    context_len: torch.Tensor,
    page_table: torch.Tensor,
    *,
    page_size: int,
) -> torch.Tensor:
    """As `minstate.kernels.paged_attention.paged_attention`, which also takes what fixes the grid of a launch."""
    tokens, heads, head_dim = q.shape
    _, kv_heads, slots, _ = kv.shape
    assert kv.is_contiguous() and q.stride()[1:] == (head_dim, 1) and head_dim % LANES == 0
    assert query_start.dtype == context_len.dtype == page_table.dtype == torch.int32
    out = q.new_empty(tokens, heads, head_dim)
    kernel("paged_attention", q.dtype, kv.dtype)(
        q.data_ptr(), q.stride(0), kv.data_ptr(), out.data_ptr(), query_start.data_ptr(), context_len.data_ptr(),
        page_table.data_ptr(), page_table.stride(0), context_len.shape[0], heads, kv_heads, head_dim, page_size, slots,
        math.log2(math.e) / math.sqrt(head_dim),
    )  # fmt: skip
    return out


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """As `minstate.kernels.silu_mul.silu_mul`."""
    tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    assert gate_up.is_contiguous() and size % LANES == 0
    out = gate_up.new_empty(tokens, size)
    kernel("silu_mul", gate_up.dtype)(gate_up.data_ptr(), out.data_ptr(), tokens, size)
    return out


def pack(weight: torch.Tensor) -> torch.Tensor:
    """Weights `[N, K]` as panels `[⌈N / PANEL⌉, K, PANEL]`; the last is filled up with zeros.

    In bfloat16 `STEP` consecutive numbers of K lie side by side, and K must be a multiple of it.
    """
    step = STEP if weight.dtype == torch.bfloat16 else 1
    padded = torch.nn.functional.pad(weight, (0, 0, 0, -len(weight) % PANEL))
    panels = padded.unflatten(0, (-1, PANEL)).unflatten(2, (-1, step)).transpose(1, 2)  # [P, K / step, PANEL, step]
    return panels.contiguous().view(len(panels), weight.shape[1], PANEL)


def unpack(panels: torch.Tensor, outputs: int) -> torch.Tensor:
    """The weights `[N, K]` of which `pack` made panels."""
    step = STEP if panels.dtype == torch.bfloat16 else 1
    count, inputs, _ = panels.shape
    return panels.view(count, inputs // step, PANEL, step).transpose(1, 2).reshape(-1, inputs)[:outputs]


def linear(x: torch.Tensor, panels: torch.Tensor, bias: torch.Tensor | None, outputs: int) -> torch.Tensor:
    """x Wᵀ + b `[M, N]` of x `[M, K]`.

    panels   as `pack` makes them of W `[N, K]`
    bias     float32, as long as the panels have outputs; or None
    outputs  N
    """
    assert x.is_contiguous() and x.dtype == panels.dtype and x.shape[1] == panels.shape[1]
    out = x.new_empty(x.shape[0], outputs)  # `len` of a tensor takes longer
    kernel("linear", x.dtype)(
        x.data_ptr(), panels.data_ptr(), None if bias is None else bias.data_ptr(), out.data_ptr(), *x.shape, outputs
    )
    return out
