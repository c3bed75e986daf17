"""Linear layers whose weights are rearranged once, when they are loaded, into the layout that a CPU reads fastest.

A matrix product cuts its operands into blocks that fit registers and caches. A general library rearranges both operands
at every call. Weights never change, so we rearrange them once. That matters most where a forward pass has few rows, as
in decoding and verification: such a pass does little but read every weight once.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

MANY_ROWS = 8  # from here on a product by AMX is the faster one


class Linear:
    """x Wᵀ + b. Matrices that share their input are stacked, so that one product serves them all.

    panels  W in the layout of the C++ kernel, if `kernels` is "cpu". It multiplies any number of rows, and gives a row
            the same bits whatever rows stand beside it.
    packed  W in the layout of [oneDNN](https://github.com/uxlfoundation/oneDNN), without the kernel. Beside the kernel
            only in bfloat16 on a CPU with AMX, whose products are faster for many rows, and only if the layer need not
            be `deterministic`.
    weight  W itself, for other dtypes and devices. Also where oneDNN cannot multiply bfloat16 on this CPU: `packed` is
            then a float32 copy. One row reads `weight`, which is smaller, because its speed is that of memory. Several
            rows read `packed`, because their speed is that of arithmetic.
    """

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor | None] = (),
        *,
        kernels: str = "torch",
        deterministic: bool = False,
    ):
        weight = torch.cat(tuple(weights)) if len(weights) > 1 else weights[0]  # [out, in]
        present = [bias for bias in biases if bias is not None]
        assert len(present) in (0, len(weights)), "matrices that are stacked all have a bias, or none has"
        self.bias = torch.cat(present) if present else None
        self.outputs = len(weight)
        self.weight: torch.Tensor | None = weight
        self.panels: torch.Tensor | None = None
        self.packed: torch.Tensor | None = None
        self.packed_dtype = _dtype_to_pack(weight)
        if kernels == "cpu":
            from minstate.kernels.cpu.functions import linear, pack  # compiles the kernels

            self.panels, self.weight, self.multiply = pack(weight), None, linear
            if deterministic or weight.dtype == torch.float32 or not torch.cpu._is_amx_tile_supported():
                self.packed_dtype = None
        if self.packed_dtype is not None:
            # We do not tell oneDNN a number of rows. A layout for one row alone it would rearrange again for several.
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(self.packed_dtype))
            self.packed_bias = None if self.bias is None else self.bias.to(self.packed_dtype)
            if self.packed_dtype == weight.dtype:
                self.weight = None
        if self.panels is not None and self.bias is not None:
            self.bias = F.pad(self.bias.float(), (0, -self.outputs % self.panels.shape[2]))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`[T, in]` → `[T, out]`."""
        rows = x.shape[0]
        if self.panels is not None and (self.packed is None or rows < MANY_ROWS):
            return self.multiply(x, self.panels, self.bias, self.outputs)
        if self.weight is not None and (self.packed is None or rows == 1):
            return F.linear(x, self.weight, self.bias)
        x_packed = x.to(self.packed_dtype)
        return torch.ops.mkldnn._linear_pointwise(x_packed, self.packed, self.packed_bias, "none", [], "").to(x.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of all layouts in which the weights are kept."""
        copies = (self.weight, self.panels, self.packed)
        return sum(copy.numel() * copy.element_size() for copy in copies if copy is not None)


def _dtype_to_pack(weight: torch.Tensor) -> torch.dtype | None:
    """The dtype in which oneDNN multiplies this tensor fastest on this machine; None if oneDNN does not support it."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return None
    if weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.float32
    return weight.dtype if weight.dtype in (torch.float32, torch.bfloat16) else None
