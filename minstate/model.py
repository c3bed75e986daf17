"""A decoder-only transformer over a ragged batch, with weights by their Hugging Face names.

Covers Llama (SmolLM2 is one), Qwen2 (biases on q, k, v) and Qwen3 (per-head norms of q and k). The model knows nothing
of pages: it hands q, k, v to `attend(layer, q, k, v)`, which `attention.py` provides.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F

from minstate.errors import DamagedWeights, UnsupportedModel
from minstate.linear import Linear
from minstate.ragged_batch import RaggedBatch

LLAMA3_ROPE = {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder, and what it costs to run."""

    num_layers: int
    hidden_size: int
    mlp_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    norm_eps: float
    rope_theta: float
    rope_scaling: dict | None  # Llama 3's stretching of slow frequencies, None for plain rotary embedding
    tied_embeddings: bool
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    head_norms: bool = False  # q and k are normalised head by head

    @staticmethod
    def from_hf(config: dict) -> "ModelConfig":
        """Read a Hugging Face `config.json`.

        Raises `UnsupportedModel`, naming what is not implemented, and `DamagedWeights` if values are missing or odd.
        """
        family = config.get("model_type")
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if not isinstance(rope, dict):
            raise DamagedWeights(f"config.json describes its rotary embedding as {rope!r}")
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        for unsupported, what in [
            (family not in ("llama", "qwen2", "qwen3"), f"model_type {family!r} (only llama, qwen2 and qwen3)"),
            (config.get("hidden_act", "silu") != "silu", f"hidden_act {config.get('hidden_act')!r} (only silu)"),
            (rope_type not in ("default", "llama3"), f"rope_type {rope_type!r} (only default and llama3)"),
            (_rotary_share(config, rope) != 1, "partial_rotary_factor (only whole heads are rotated)"),
            (config.get("use_sliding_window"), "use_sliding_window (only full attention)"),
            ("quantization_config" in config, "quantised weights (only plain float tensors)"),
        ]:
            if unsupported:
                raise UnsupportedModel(f"minstate does not implement {what}")
        if rope_type == "llama3" and not rope.keys() >= LLAMA3_ROPE:
            raise DamagedWeights(f"config.json lacks {sorted(LLAMA3_ROPE - rope.keys())} for rope_type 'llama3'")
        bias = bool(config.get("attention_bias", False))
        try:
            shape = ModelConfig(
                num_layers=config["num_hidden_layers"],
                hidden_size=config["hidden_size"],
                mlp_size=config["intermediate_size"],
                num_heads=config["num_attention_heads"],
                num_kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
                head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
                vocab_size=config["vocab_size"],
                max_positions=config["max_position_embeddings"],
                norm_eps=config["rms_norm_eps"],
                rope_theta=float(rope.get("rope_theta") or config.get("rope_theta", 10_000.0)),
                rope_scaling=rope if rope_type == "llama3" else None,
                tied_embeddings=config.get("tie_word_embeddings", False),
                qkv_bias=bias or family == "qwen2",
                o_bias=bias and family != "qwen2",
                mlp_bias=bool(config.get("mlp_bias", False)),
                head_norms=family == "qwen3",
            )
        except KeyError as missing:
            raise DamagedWeights(f"config.json lacks {missing}") from missing
        except (TypeError, ValueError) as error:
            raise DamagedWeights(f"config.json holds an odd value: {error}") from error
        for size in fields(shape):
            value = getattr(shape, size.name)
            if size.type is int and (not isinstance(value, int) or value < 1):
                raise DamagedWeights(f"config.json says {value!r} for {size.name}, which is no positive number")
        return shape

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer's matrices, each of which multiplies every token once."""
        attention = self.hidden_size * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        return attention + 3 * self.hidden_size * self.mlp_size

    def flops(self, tokens: int, context: int, logit_rows: int) -> int:
        """Floating-point operations to forward `tokens` query tokens, the last of which reads `context` keys.

        The context includes the query tokens: a prefill from nothing has `context == tokens`.
        A multiply-add counts as two. Matrix products only: norms, rotations and softmax come to about one per cent.
        """
        linear = 2 * tokens * self.num_layers * self.layer_parameters
        keys_read = tokens * context - tokens * (tokens - 1) // 2  # causal: each earlier query reads one key fewer
        attention = 4 * keys_read * self.num_layers * self.num_heads * self.head_dim
        return linear + attention + 2 * logit_rows * self.hidden_size * self.vocab_size

    def kv_bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes of K and V that one token keeps in the pool."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * dtype.itemsize

    def bytes_read(self, context: int, dtype: torch.dtype) -> int:
        """Bytes that a forward pass with logits reads: all weights once, however few tokens it has, and all K/V.

        `context` counts the tokens with K/V of all its sequences.
        """
        weights = self.num_layers * self.layer_parameters + self.hidden_size * self.vocab_size
        return weights * dtype.itemsize + context * self.kv_bytes_per_token(dtype)

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors that the model must have, by name."""
        hidden, mlp, vocab = self.hidden_size, self.mlp_size, self.vocab_size
        q_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
        if not self.tied_embeddings:
            shapes["lm_head.weight"] = (vocab, hidden)
        for i in range(self.num_layers):
            shapes |= {
                f"model.layers.{i}.{name}.weight": shape
                for name, shape in {
                    "input_layernorm": (hidden,),
                    "self_attn.q_proj": (q_size, hidden),
                    "self_attn.k_proj": (kv_size, hidden),
                    "self_attn.v_proj": (kv_size, hidden),
                    "self_attn.o_proj": (hidden, q_size),
                    "post_attention_layernorm": (hidden,),
                    "mlp.gate_proj": (mlp, hidden),
                    "mlp.up_proj": (mlp, hidden),
                    "mlp.down_proj": (hidden, mlp),
                }.items()
            }
            biased = {"self_attn.q_proj": self.qkv_bias, "self_attn.k_proj": self.qkv_bias}
            biased |= {"self_attn.v_proj": self.qkv_bias, "self_attn.o_proj": self.o_bias}
            biased |= dict.fromkeys(("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"), self.mlp_bias)
            for name in (name for name, is_biased in biased.items() if is_biased):
                shapes[f"model.layers.{i}.{name}.bias"] = shapes[f"model.layers.{i}.{name}.weight"][:1]
            if self.head_norms:
                shapes[f"model.layers.{i}.self_attn.q_norm.weight"] = (self.head_dim,)
                shapes[f"model.layers.{i}.self_attn.k_norm.weight"] = (self.head_dim,)
        return shapes


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
        """Layer `i` of tensors by their Hugging Face names."""
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
    """The decoder: `forward` is the only way through it, whatever a batch is made of."""

    def __init__(self, config: ModelConfig, tensors: dict[str, torch.Tensor]):
        for name, shape in config.tensor_shapes().items():
            if name not in tensors:
                raise DamagedWeights(f"the weights lack {name}")
            if tensors[name].shape != shape:
                raise DamagedWeights(f"{name} is {list(tensors[name].shape)}, the configuration says {list(shape)}")
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
        """Logits `[R, vocab]` of the batch's `logit_rows`."""
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
    """Tells one model from another: its configuration, and a sample of every tensor, in its precision."""
    digest = hashlib.sha256(str(config).encode())
    for name in config.tensor_shapes():
        tensor = tensors[name]
        sample = tensor.flatten()[:: max(1, tensor.numel() // 64)]
        digest.update(f"{name} {tensor.dtype}".encode() + sample.double().cpu().numpy().tobytes())
    return digest.hexdigest()


def _rotary_share(config: dict, rope: dict) -> float:
    return rope.get("partial_rotary_factor", config.get("partial_rotary_factor")) or 1


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding (arXiv 2104.09864) of x `[T, heads, D]`: dimension d turns together with d + D/2.

    cos and sin are those of `rotary_table`, which has the signs in it: x[d] cos − x[d + D/2] sin in the first half,
    x[d + D/2] cos + x[d] sin in the second.
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def rotary_table(config: ModelConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin `[positions, D]` of each position's rotation angles, in float32, as the models were trained.

    Both halves turn by the same angles; the sine of the first half is negative.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequency = 1.0 / config.rope_theta**exponents  # radians per token
    if config.rope_scaling is not None:
        frequency = _stretch_slow_frequencies(frequency, config.rope_scaling)
    angles = torch.arange(config.max_positions, dtype=torch.float32)[:, None] * frequency
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def _stretch_slow_frequencies(frequency: torch.Tensor, scaling: dict) -> torch.Tensor:
    """Llama 3.1: divide frequencies that turn seldom within the original context by `factor`, keep fast ones."""
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return keep * frequency + (1 - keep) * frequency / scaling["factor"]
