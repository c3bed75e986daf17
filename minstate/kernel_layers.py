"""The layers of `Model.forward` by hand-written kernels: one forward pass for CPU and GPU.

`gpu.py` hands over the kernels in Triton, `cpu.py` those in C++. Both kinds have the same names and contracts, which
are explained beside the kernels in Triton. `Model.forward` is the reference, and computes what the kernels lack.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch

from minstate.errors import BadValue, UnsupportedModel
from minstate.model import Model
from minstate.model_config import ModelConfig
from minstate.model_families import Family
from minstate.paged_kv import KVPool


class Kernels(NamedTuple):
    """What a layer needs besides its four matrix products."""

    rms_norm: Callable[..., torch.Tensor]
    append_kv: Callable[..., torch.Tensor]
    paged_attention: Callable[..., torch.Tensor]
    silu_mul: Callable[..., torch.Tensor]


class Inputs(NamedTuple):
    """A `RaggedBatch` on the device of the model, in int32."""

    token_ids: torch.Tensor  # [T]
    positions: torch.Tensor  # [T]
    slots: torch.Tensor  # [T], −1 for padding
    query_start: torch.Tensor  # [B + 1]
    context_len: torch.Tensor  # [B]
    page_table: torch.Tensor  # [B, P]


def missing_in_kernels(config: ModelConfig) -> list[str]:
    """What a model has that `hidden_states` does not compute: `Model.forward` then computes it, on the GPU too."""
    family, scales = config.family, (config.embedding_scale, config.residual_scale, config.logits_scale)
    return [
        feature
        for is_missing, feature in [
            (any(config.windows), "sliding windows"),
            (any(rope.dims < config.head_dim for rope in config.ropes), "heads that are rotated in part"),
            (family.norms != Family().norms or family.norm_offset, "norms elsewhere than before attention and MLP"),
            (family.qk_norm == "row", "norms over whole rows of heads"),
            (config.activation != "silu", config.activation),
            (config.attention_scale not in (None, config.head_dim**-0.5), "another scale of scores than 1 / √D"),
            (scales != (1, 1, 1), "multipliers of embeddings, residuals and logits"),
        ]
        if is_missing
    ]


def odd_sizes(config: ModelConfig) -> list[str]:
    """The sizes of a model that are no whole vectors on this CPU. Raises `UnsupportedModel` without kernels."""
    from minstate.kernels.cpu.functions import LANES  # compiles the kernels

    sizes = {name: getattr(config, name) for name in ("head_dim", "hidden_size", "mlp_size")}
    return [f"{name} {size}, which is no multiple of {LANES}" for name, size in sizes.items() if size % LANES]


def choose_kernels(wanted: str, config: ModelConfig, dtype: torch.dtype, device: str) -> str:
    """What computes a model's forward passes: "torch", "cpu" or "cuda", for `wanted`, which may be "auto".

    Where a compiler is missing, "auto" warns and takes torch. Raises `BadValue`, and `UnsupportedModel` if the kernels
    that are asked for by name cannot compute the model on this machine.
    """
    if wanted not in ("auto", "torch", device):
        raise BadValue(f"kernels must be 'auto', 'torch', or {device!r} with device={device!r}, not {wanted!r}")
    if wanted == "torch" or device == "cuda":
        return "torch" if wanted == "torch" else "cuda"
    missing = ["float64"] if dtype == torch.float64 else missing_in_kernels(config)
    if not missing:
        try:
            missing = odd_sizes(config)
        except UnsupportedModel as error:
            if wanted == "cpu":
                raise
            warnings.warn(f"torch computes, at about half the speed: {error}", stacklevel=5)
            return "torch"
    if missing and wanted == "cpu":
        raise UnsupportedModel(f"the kernels for a CPU lack {', '.join(missing)}: pass kernels='auto' or 'torch'")
    return "torch" if missing else "cpu"


@torch.inference_mode()
def hidden_states(model: Model, pool: KVPool, inputs: Inputs, kernels: Kernels) -> torch.Tensor:
    """The normalised hidden states `[T, hidden]` that `Model.forward` projects onto the vocabulary.

    Besides its four matrix products, a layer is five or six calls. Adding to the residual and taking the norm of the
    sum are one call, so the residual is read and written only twice a layer.
    """
    config, (rms_norm, append_kv, paged_attention, silu_mul) = model.config, kernels
    heads, kv_heads, eps = config.num_heads, config.num_kv_heads, config.norm_eps
    residual = model.embedding[inputs.token_ids]
    norms = [norm for layer in model.layers for norm in (layer.attention_norm, layer.mlp_norm) if norm is not None]
    x = rms_norm(residual, norms[0], eps)
    for i, (layer, mlp_norm, next_norm) in enumerate(
        zip(model.layers, norms[1::2], [*norms[2::2], model.norm], strict=True)
    ):
        kv = pool.kv[i]
        qkv = layer.qkv(x).unflatten(-1, (-1, config.head_dim))
        if layer.head_norm is not None:
            qkv[:, : heads + kv_heads] = rms_norm(qkv[:, : heads + kv_heads], layer.head_norm, eps)
        q = append_kv(qkv, *model.rotary[layer.rotary], inputs.positions, inputs.slots, kv)
        where = inputs.query_start, inputs.context_len, inputs.page_table
        out = paged_attention(q, kv, *where, page_size=pool.page_size)
        x = rms_norm(layer.out(out.flatten(1)), mlp_norm, eps, residual)
        x = rms_norm(layer.down(silu_mul(layer.gate_up(x))), next_norm, eps, residual)
    return x
