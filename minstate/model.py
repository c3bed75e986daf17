"""A decoder-only transformer over a ragged batch, with weights by their Hugging Face names.

`model_families.FAMILIES` names the families that it covers, and what their layers have. The model knows nothing of
pages. It hands the q, k and v of each layer to a function `attend(layer, q, k, v)`, which stores k and v and
returns attention's output; `attention.py` provides that function.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from minstate.errors import DamagedWeights
from minstate.linear import Linear
from minstate.model_config import ModelConfig
from minstate.ragged_batch import RaggedBatch
from minstate.rotary import rotary_table, rotate

# attend(layer, q [T, H, D], k [T, H_kv, D], v [T, H_kv, D]) → [T, H, D]
Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Layer:
    """The weights of one decoder layer, as `Model.forward` uses them. A norm that a family lacks is None."""

    attention_norm: torch.Tensor | None  # [hidden]
    qkv: Linear  # hidden → (H + 2 H_kv) · D: queries, keys and values at once
    head_norm: torch.Tensor | None  # [H + H_kv, D] for the heads of q and k
    rotary: int  # which of the model's rotary tables
    out: Linear  # H · D → hidden
    attention_out_norm: torch.Tensor | None  # [hidden]
    mlp_norm: torch.Tensor | None  # [hidden]
    gate_up: Linear  # hidden → 2 · mlp
    down: Linear  # mlp → hidden
    mlp_out_norm: torch.Tensor | None  # [hidden]

    @staticmethod
    def of(config: ModelConfig, tensors: dict[str, torch.Tensor], i: int, rotary: int, **layout) -> "Layer":
        """Layer `i`, from tensors by their Hugging Face names; `layout` is that of `Linear`."""
        layer, fused = f"model.layers.{i}.", config.family.fused

        def linear(*names: str) -> Linear:
            weights = [tensors[f"{layer}{name}.weight"] for name in names]
            return Linear(weights, [tensors.get(f"{layer}{name}.bias") for name in names], **layout)

        attention_norm, attention_out_norm, mlp_norm, mlp_out_norm = (
            norm_weight(config, tensors[f"{layer}{name}.weight"]) if name else None for name in config.family.norms
        )
        head_norm = None
        if config.family.qk_norm:  # a weight for each dimension of a head, or for each of a row of heads
            q_norm, k_norm = (
                norm_weight(config, tensors[f"{layer}self_attn.{name}.weight"]).view(-1, config.head_dim)
                for name in ("q_norm", "k_norm")
            )
            head_norm = torch.cat((q_norm.expand(config.num_heads, -1), k_norm.expand(config.num_kv_heads, -1)))
        return Layer(
            attention_norm=attention_norm,
            qkv=linear("self_attn.qkv_proj") if fused else linear(*(f"self_attn.{x}_proj" for x in "qkv")),
            head_norm=head_norm,
            rotary=rotary,
            out=linear("self_attn.o_proj"),
            attention_out_norm=attention_out_norm,
            mlp_norm=mlp_norm,
            gate_up=linear("mlp.gate_up_proj") if fused else linear("mlp.gate_proj", "mlp.up_proj"),
            down=linear("mlp.down_proj"),
            mlp_out_norm=mlp_out_norm,
        )


def norm_weight(config: ModelConfig, weight: torch.Tensor) -> torch.Tensor:
    """The weight of an RMS norm. Where a family adds 1 to it, the sum needs more digits than bfloat16 has."""
    offset = config.family.norm_offset
    return weight.to(torch.promote_types(weight.dtype, torch.float32)) + offset if offset else weight


class Model:
    """A decoder and its weights. Prefill, decode and verification all go through `forward`.

    kernels        "cpu", "cuda" or "torch": what computes its forward passes in an engine, `forward` itself if "torch";
                   None: "cuda" on a GPU, else "torch"
    deterministic  with "cpu": a token has the same logits, bit for bit, whatever is computed beside it

    Raises `DamagedWeights` if a tensor is missing, or has another shape than the configuration says.
    """

    def __init__(
        self,
        config: ModelConfig,
        tensors: dict[str, torch.Tensor],
        *,
        kernels: str | None = None,
        deterministic: bool = False,
    ):
        for name, shape in config.tensor_shapes().items():
            if name not in tensors:
                raise DamagedWeights(f"the weights lack {name}")
            if tensors[name].shape != shape:
                raise DamagedWeights(f"{name} is {list(tensors[name].shape)}, but the configuration says {list(shape)}")
        self.config = config
        self.fingerprint = _fingerprint(config, tensors)
        self.origin = _fingerprint(config, tensors, torch.bfloat16)  # the same, in whatever dtype they were loaded
        self.embedding = tensors["model.embed_tokens.weight"]
        self.dtype, self.device = self.embedding.dtype, self.embedding.device
        self.kernels = kernels or ("cuda" if self.device.type == "cuda" else "torch")
        layout: dict[str, Any] = {"kernels": self.kernels, "deterministic": deterministic}
        ropes = [rope for i, rope in enumerate(config.ropes) if rope not in config.ropes[:i]]  # each kind once
        tables = [rotary_table(rope, config.max_positions) for rope in ropes]
        self.rotary = [(cos.to(self.embedding), sin.to(self.embedding)) for cos, sin in tables]
        self.layers = [Layer.of(config, tensors, i, ropes.index(rope), **layout) for i, rope in enumerate(config.ropes)]
        self.embedding_scale = torch.tensor(config.embedding_scale).to(self.dtype)  # rounded as in training
        self.norm = norm_weight(config, tensors["model.norm.weight"])
        self.lm_head = Linear([self.embedding if config.tied_embeddings else tensors["lm_head.weight"]], **layout)
        self.activation = F.silu if config.activation == "silu" else partial(F.gelu, approximate="tanh")

    @torch.inference_mode()
    def forward(self, batch: RaggedBatch, attend: Attend) -> torch.Tensor:
        """Logits `[R, vocab]` of the batch's `logit_rows`. `attend` writes the K/V of all T query tokens."""
        config, norm = self.config, self._norm
        heads, kv_heads = config.num_heads, config.num_kv_heads
        rotary = [(cos[batch.positions, None], sin[batch.positions, None]) for cos, sin in self.rotary]  # [T, 1, R]
        x = self.embedding[batch.token_ids] * self.embedding_scale  # [T, hidden]
        for i, layer in enumerate(self.layers):
            qkv = layer.qkv(norm(x, layer.attention_norm)).unflatten(-1, (-1, config.head_dim))  # [T, H + 2 H_kv, D]
            qk, v = qkv.split((heads + kv_heads, kv_heads), dim=1)
            if layer.head_norm is not None:
                qk = self._norm_heads(qk, layer.head_norm)
            q, k = rotate(qk, *rotary[layer.rotary]).split((heads, kv_heads), dim=1)
            attended = layer.out(attend(i, q, k, v).flatten(1))
            x = x.add(norm(attended, layer.attention_out_norm), alpha=config.residual_scale)
            gate, up = layer.gate_up(norm(x, layer.mlp_norm)).chunk(2, dim=-1)
            x = x.add(norm(layer.down(self.activation(gate) * up), layer.mlp_out_norm), alpha=config.residual_scale)
        return self.lm_head(norm(x[batch.logit_rows], self.norm)) * config.logits_scale

    def _norm(self, x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        """[RMS norm](https://arxiv.org/abs/1910.07467) of each row of x `[T, hidden]`, if there is a weight for it."""
        if weight is None:
            return x
        return F.rms_norm(x.to(weight.dtype), x.shape[-1:], weight, self.config.norm_eps).to(x.dtype)

    def _norm_heads(self, qk: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """RMS norm of q and k `[T, H + H_kv, D]`: of each head, or of all heads of q at once, and of all of k."""
        x = qk.to(weight.dtype)
        if self.config.family.qk_norm == "head":
            x = F.rms_norm(x, x.shape[-1:], eps=self.config.norm_eps)
        else:
            q_and_k = x.split((self.config.num_heads, self.config.num_kv_heads), dim=1)
            x = torch.cat([F.rms_norm(part, part.shape[1:], eps=self.config.norm_eps) for part in q_and_k], dim=1)
        return (x * weight).to(qk.dtype)


def _fingerprint(config: ModelConfig, tensors: dict[str, torch.Tensor], dtype: torch.dtype | None = None) -> str:
    """A hash of the configuration and of a sample of every tensor, as they are or in `dtype`."""
    digest = hashlib.sha256(str(config).encode())
    for name in config.tensor_shapes():
        tensor = tensors[name]
        sample = tensor.flatten()[:: max(1, tensor.numel() // 64)].to(dtype or tensor.dtype)
        digest.update(f"{name} {sample.dtype}".encode() + sample.double().cpu().numpy().tobytes())
    return digest.hexdigest()
