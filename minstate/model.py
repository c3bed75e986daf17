"""A decoder-only transformer over a ragged batch, with weights by their Hugging Face names.

`model_config.FAMILIES` names the families that it covers: Llama (SmolLM2 is one), Qwen2 and Qwen3. The model knows
nothing of pages. It hands the q, k and v of each layer to a function `attend(layer, q, k, v)`, which stores k and v and
returns attention's output; `attention.py` provides that function.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from minstate.errors import DamagedWeights
from minstate.linear import Linear
from minstate.model_config import ModelConfig
from minstate.ragged_batch import RaggedBatch

# attend(layer, q [T, H, D], k [T, H_kv, D], v [T, H_kv, D]) → [T, H, D]
Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Layer:
    """The weights of one decoder layer, as `Model.forward` uses them."""

    attention_norm: torch.Tensor  # [hidden]
    qkv: Linear  # hidden → (H + 2 H_kv) · D: queries, keys and values at once
    head_norm: torch.Tensor | None  # [H + H_kv, D] for the heads of q and k, if the model normalises them
    out: Linear  # H · D → hidden
    mlp_norm: torch.Tensor  # [hidden]
    gate_up: Linear  # hidden → 2 · mlp
    down: Linear  # mlp → hidden

    @staticmethod
    def of(config: ModelConfig, tensors: dict[str, torch.Tensor], i: int) -> "Layer":
        """Layer `i`, from tensors by their Hugging Face names."""
        layer = f"model.layers.{i}."

        def linear(*names: str) -> Linear:
            return Linear(
                [tensors[f"{layer}{name}.weight"] for name in names],
                [tensors.get(f"{layer}{name}.bias") for name in names],
            )

        head_norm = None
        if config.head_norms:
            q_norm, k_norm = (tensors[f"{layer}self_attn.{name}.weight"] for name in ("q_norm", "k_norm"))
            head_norm = torch.stack([q_norm] * config.num_heads + [k_norm] * config.num_kv_heads)
        return Layer(
            attention_norm=tensors[layer + "input_layernorm.weight"],
            qkv=linear("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            head_norm=head_norm,
            out=linear("self_attn.o_proj"),
            mlp_norm=tensors[layer + "post_attention_layernorm.weight"],
            gate_up=linear("mlp.gate_proj", "mlp.up_proj"),
            down=linear("mlp.down_proj"),
        )


class Model:
    """A decoder and its weights. Prefill, decode and verification all go through `forward`.

    Raises `DamagedWeights` if a tensor is missing, or has another shape than the configuration says.
    """

    def __init__(self, config: ModelConfig, tensors: dict[str, torch.Tensor]):
        for name, shape in config.tensor_shapes().items():
            if name not in tensors:
                raise DamagedWeights(f"the weights lack {name}")
            if tensors[name].shape != shape:
                raise DamagedWeights(f"{name} is {list(tensors[name].shape)}, but the configuration says {list(shape)}")
        self.config = config
        self.fingerprint = _fingerprint(config, tensors)
        self.embedding = tensors["model.embed_tokens.weight"]
        self.dtype, self.device = self.embedding.dtype, self.embedding.device
        self.layers = [Layer.of(config, tensors, i) for i in range(config.num_layers)]
        self.norm = tensors["model.norm.weight"]
        self.lm_head = Linear([self.embedding if config.tied_embeddings else tensors["lm_head.weight"]])
        cos, sin = rotary_table(config)
        self.cos, self.sin = cos.to(self.embedding), sin.to(self.embedding)

    @torch.inference_mode()
    def forward(self, batch: RaggedBatch, attend: Attend) -> torch.Tensor:
        """Logits `[R, vocab]` of the batch's `logit_rows`. `attend` writes the K/V of all T query tokens."""
        heads, kv_heads, head_dim = self.config.num_heads, self.config.num_kv_heads, self.config.head_dim
        x = self.embedding[batch.token_ids]  # [T, hidden]
        cos, sin = self.cos[batch.positions, None], self.sin[batch.positions, None]  # [T, 1, D]
        for i, layer in enumerate(self.layers):
            qkv = layer.qkv(self._norm(x, layer.attention_norm)).unflatten(-1, (-1, head_dim))  # [T, H + 2 H_kv, D]
            qk, v = qkv.split((heads + kv_heads, kv_heads), dim=1)
            if layer.head_norm is not None:
                qk = self._norm(qk) * layer.head_norm
            q, k = rotate(qk, cos, sin).split((heads, kv_heads), dim=1)
            x = x + layer.out(attend(i, q, k, v).flatten(1))
            gate, up = layer.gate_up(self._norm(x, layer.mlp_norm)).chunk(2, dim=-1)
            x = x + layer.down(F.silu(gate) * up)
        return self.lm_head(self._norm(x[batch.logit_rows], self.norm))

    def _norm(self, x: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        return F.rms_norm(x, x.shape[-1:], weight, self.config.norm_eps)


def _fingerprint(config: ModelConfig, tensors: dict[str, torch.Tensor]) -> str:
    """A hash of the configuration and of a sample of every tensor: it differs between models, and between dtypes."""
    digest = hashlib.sha256(str(config).encode())
    for name in config.tensor_shapes():
        tensor = tensors[name]
        sample = tensor.flatten()[:: max(1, tensor.numel() // 64)]
        digest.update(f"{name} {tensor.dtype}".encode() + sample.double().cpu().numpy().tobytes())
    return digest.hexdigest()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding ([RoPE](https://arxiv.org/abs/2104.09864)) of x `[T, heads, D]`: the same shape.

    Dimensions d and d + D/2 rotate together, by the angle that belongs to the token's position:

        y[d]       = x[d] · cos(angle) − x[d + D/2] · sin(angle)
        y[d + D/2] = x[d + D/2] · cos(angle) + x[d] · sin(angle)

    cos and sin, `[T, 1, D]`, are rows of `rotary_table`. They hold the minus sign, so both lines are the same sum.
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def rotary_table(config: ModelConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin `[positions, D]` of the rotation angles at each position, in float32, as the models were trained.

    Both halves of a head rotate by the same angles. The sine of the first half is negated, for `rotate`.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequency = 1.0 / config.rope_theta**exponents  # radians per token
    if config.rope_scaling is not None:
        frequency = _scale_low_frequencies(frequency, config.rope_scaling)
    angles = torch.arange(config.max_positions, dtype=torch.float32)[:, None] * frequency
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def _scale_low_frequencies(frequency: torch.Tensor, scaling: Mapping[str, Any]) -> torch.Tensor:
    """Llama 3.1 divides low frequencies by `factor`, keeps high ones, and blends those in between.

    A frequency (radians per token) is low or high by how many turns it makes within the original context.
    """
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return keep * frequency + (1 - keep) * frequency / scaling["factor"]
