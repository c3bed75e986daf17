"""Products with the model's fixed weights, laid out once, when they are loaded, as the CPU likes to read them.

A matrix product cuts its operands into blocks that fit registers and caches. A general library does so at every call;
for weights, which never change, once is enough. It matters most for few rows: a decode step reads every weight once,
and so does a pass that checks some drafts, if nothing has to be rearranged on the way.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


class Linear:
    """x Wᵀ + b. Matrices that have their input in common are stacked, so that one product serves them all.

    `packed` is W in oneDNN's layout, and takes the place of `weight`. Where oneDNN cannot multiply bfloat16 on this
    CPU, it is a float32 copy beside it: one row waits for memory and reads the smaller `weight`, several rows wait for
    arithmetic, which float32 does faster. Other dtypes and devices have the plain `weight` alone.
    """

    def __init__(self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None] = ()):
        self.weight = torch.cat(tuple(weights)) if len(weights) > 1 else weights[0]  # [out, in]
        self.bias = torch.cat(tuple(biases)) if any(bias is not None for bias in biases) else None
        self.packed: torch.Tensor | None = None
        self.packed_dtype = _dtype_to_pack(self.weight)
        if self.packed_dtype is not None:
            # Without a number of rows: what oneDNN picks for one row alone, it would rearrange at each call with more.
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.to(self.packed_dtype))
            self.packed_bias = None if self.bias is None else self.bias.to(self.packed_dtype)
            if self.packed_dtype == self.weight.dtype:
                self.weight = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`[T, in]` → `[T, out]`."""
        if self.packed is None or (self.weight is not None and len(x) == 1):
            return F.linear(x, self.weight, self.bias)
        x_packed = x.to(self.packed_dtype)
        return torch.ops.mkldnn._linear_pointwise(x_packed, self.packed, self.packed_bias, "none", [], "").to(x.dtype)


def _dtype_to_pack(weight: torch.Tensor) -> torch.dtype | None:
    """What oneDNN multiplies fastest in place of this tensor on this machine; None if it does not know the dtype."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return None
    if weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.float32
    return weight.dtype if weight.dtype in (torch.float32, torch.bfloat16) else None
