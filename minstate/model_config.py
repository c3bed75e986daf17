"""The shape of a decoder, read from a Hugging Face `config.json`, and what the decoder costs to run.

A family of models is a row of `FAMILIES`. `_require_implemented` refuses, by name, the features that `Model` lacks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from minstate.config_values import require_sensible
from minstate.errors import DamagedWeights, UnsupportedModel


@dataclass(frozen=True)
class Family:
    """What the layers of a `model_type` have, where `config.json` does not decide it.

    qkv_bias    whether the projections to q, k and v have a bias; None: as `attention_bias` in `config.json` says
    o_bias      whether the projection of attention's output has a bias; None as above
    head_norms  whether q and k are normalised head by head
    """

    qkv_bias: bool | None = None
    o_bias: bool | None = None
    head_norms: bool = False


FAMILIES = {
    "llama": Family(),
    "qwen2": Family(qkv_bias=True, o_bias=False),
    "qwen3": Family(head_norms=True),
}
LLAMA3_ROPE = {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}


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
    rope_scaling: Mapping[str, Any] | None  # how Llama 3 slows low frequencies down; None for plain rotary embedding
    tied_embeddings: bool
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    head_norms: bool = False  # q and k are normalised head by head

    @staticmethod
    def from_hf(config: Mapping[str, Any]) -> "ModelConfig":
        """Read a Hugging Face `config.json`.

        Raises `UnsupportedModel`, which names what is not implemented, and `DamagedWeights` if a value is missing or
        makes no sense.
        """
        require_sensible(config)
        rope = _rope_settings(config)
        _require_implemented(config, rope)
        return _read_shape(config, rope, FAMILIES[config["model_type"]])

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer's matrices. Each weight multiplies every token once."""
        attention = self.hidden_size * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        return attention + 3 * self.hidden_size * self.mlp_size

    def flops(self, tokens: int, context: int, logit_rows: int) -> int:
        """Floating-point operations to forward `tokens` query tokens, the last of which reads `context` keys.

        The context includes the query tokens, so a prefill from nothing has `context == tokens`. A multiply-add counts
        as two operations. Only matrix products count: norms, rotations and softmax add about one per cent.
        """
        linear = 2 * tokens * self.num_layers * self.layer_parameters
        keys_read = tokens * context - tokens * (tokens - 1) // 2  # causal: each earlier query reads one key fewer
        attention = 4 * keys_read * self.num_layers * self.num_heads * self.head_dim
        return linear + attention + 2 * logit_rows * self.hidden_size * self.vocab_size

    def kv_bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes that the K and V of one token take in the pool."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * dtype.itemsize

    def bytes_read(self, context: int, dtype: torch.dtype) -> int:
        """Bytes that a forward pass with logits reads: all weights once, however few tokens it has, and all K/V.

        `context` counts the tokens with K/V of all sequences in the batch.
        """
        weights = self.num_layers * self.layer_parameters + self.hidden_size * self.vocab_size
        return weights * dtype.itemsize + context * self.kv_bytes_per_token(dtype)

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor that the model must have, by its Hugging Face name."""
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocab_size, self.hidden_size),
            "model.norm.weight": (self.hidden_size,),
        }
        if not self.tied_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, self.hidden_size)
        layer = self._layer_shapes().items()
        return shapes | {f"model.layers.{i}.{name}": shape for i in range(self.num_layers) for name, shape in layer}

    def _layer_shapes(self) -> dict[str, tuple[int, ...]]:
        hidden, mlp = self.hidden_size, self.mlp_size
        q_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        weights: dict[str, tuple[int, ...]] = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (q_size, hidden),
            "self_attn.k_proj": (kv_size, hidden),
            "self_attn.v_proj": (kv_size, hidden),
            "self_attn.o_proj": (hidden, q_size),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (mlp, hidden),
            "mlp.up_proj": (mlp, hidden),
            "mlp.down_proj": (hidden, mlp),
        }
        has_bias = dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), self.qkv_bias)
        has_bias |= {"self_attn.o_proj": self.o_bias}
        has_bias |= dict.fromkeys(("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"), self.mlp_bias)
        shapes = {f"{name}.weight": shape for name, shape in weights.items()}
        shapes |= {f"{name}.bias": weights[name][:1] for name, biased in has_bias.items() if biased}
        if self.head_norms:
            shapes |= {f"self_attn.{name}.weight": (self.head_dim,) for name in ("q_norm", "k_norm")}
        return shapes


def _rope_settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the configuration says of the rotary embedding; empty if it says nothing."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise DamagedWeights(f"config.json describes its rotary embedding as {rope!r}, which is not an object")
    return rope


def _rope_type(rope: Mapping[str, Any]) -> Any:
    return rope.get("rope_type", rope.get("type", "default"))


def _require_implemented(config: Mapping[str, Any], rope: Mapping[str, Any]) -> None:
    """Raises `UnsupportedModel` if the model needs something that `Model` does not compute."""
    family, activation, rope_type = config.get("model_type"), config.get("hidden_act", "silu"), _rope_type(rope)
    rotated = rope.get("partial_rotary_factor", config.get("partial_rotary_factor")) or 1  # share of each head
    families = list(FAMILIES)
    for is_missing, feature in [
        (family not in families, f"model_type {family!r} (only {', '.join(families)})"),
        (activation != "silu", f"hidden_act {activation!r} (only silu)"),
        (rope_type not in ("default", "llama3"), f"rope_type {rope_type!r} (only default and llama3)"),
        (rotated != 1, "partial_rotary_factor (only whole heads are rotated)"),
        (config.get("use_sliding_window"), "use_sliding_window (only full attention)"),
        ("quantization_config" in config, "quantised weights (only plain float tensors)"),
    ]:
        if is_missing:
            raise UnsupportedModel(f"minstate does not implement {feature}")


def _llama3_scaling(rope: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The settings by which Llama 3 scales rotary frequencies, or None. Raises `DamagedWeights` if some are missing."""
    if _rope_type(rope) != "llama3":
        return None
    if missing := LLAMA3_ROPE - rope.keys():
        raise DamagedWeights(f"config.json lacks {sorted(missing)} for rope_type 'llama3'")
    return rope


def _read_shape(config: Mapping[str, Any], rope: Mapping[str, Any], family: Family) -> ModelConfig:
    """The shape as `config.json` names it. Raises `DamagedWeights` if a value is missing or of another kind."""
    rope_scaling = _llama3_scaling(rope)
    has_bias = bool(config.get("attention_bias", False))
    try:
        return ModelConfig(
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
            rope_scaling=rope_scaling,
            tied_embeddings=config.get("tie_word_embeddings", False),
            qkv_bias=has_bias if family.qkv_bias is None else family.qkv_bias,
            o_bias=has_bias if family.o_bias is None else family.o_bias,
            mlp_bias=bool(config.get("mlp_bias", False)),
            head_norms=family.head_norms,
        )
    except KeyError as missing:
        raise DamagedWeights(f"config.json lacks {missing}") from missing
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise DamagedWeights(f"config.json holds a value that makes no sense: {error}") from error
