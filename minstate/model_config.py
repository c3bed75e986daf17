"""The shape of a decoder, read from a Hugging Face `config.json`, and what the decoder costs to run.

A family of models is a row of `model_families.FAMILIES`. `_require_implemented` refuses, by name, the features that
`Model` lacks.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from minstate.config_values import require_sensible
from minstate.errors import DamagedWeights, UnsupportedModel
from minstate.kv_int8 import row_width
from minstate.model_families import FAMILIES, Family
from minstate.rotary import Rope

FULL, SLIDING = "full_attention", "sliding_attention"  # kinds of layers, as `config.json` names them


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
    tied_embeddings: bool
    ropes: tuple[Rope, ...]  # of each layer
    windows: tuple[int | None, ...]  # of each layer: how many keys a query reads at most, its own included; None: all
    family: Family = FAMILIES["llama"]
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    activation: str = "silu"
    embedding_scale: float = 1.0  # of the embeddings
    attention_scale: float | None = None  # of the scores q · k; None: 1 / √D
    residual_scale: float = 1.0  # of what attention and MLP add to the residual
    logits_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("ropes", "windows"):  # a model may be cut down to its first layers
            object.__setattr__(self, name, getattr(self, name)[: self.num_layers])

    @staticmethod
    def from_hf(config: Mapping[str, Any]) -> "ModelConfig":
        """Read a Hugging Face `config.json`.

        Raises `UnsupportedModel`, which names what is not implemented, and `DamagedWeights` if a value is missing or
        makes no sense.
        """
        require_sensible(config)
        _require_implemented(config)
        try:
            return _read_shape(config, FAMILIES[config["model_type"]])
        except (UnsupportedModel, DamagedWeights):
            raise
        except KeyError as missing:
            raise DamagedWeights(f"config.json lacks {missing}") from missing
        except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise DamagedWeights(f"config.json holds a value that makes no sense: {error}") from error

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
        keys_read = 0  # of all queries and layers
        for window, layers in Counter(self.windows).items():
            limit = context if window is None else window
            growing = min(max(limit - (context - tokens), 0), tokens)  # queries whose whole context they may read
            last = context - tokens + growing
            keys_read += layers * (growing * last - growing * (growing - 1) // 2 + (tokens - growing) * limit)
        attention = 4 * keys_read * self.num_heads * self.head_dim
        return linear + attention + 2 * logit_rows * self.hidden_size * self.vocab_size

    def kv_bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes that the K and V of one token take in the pool."""
        return 2 * self.num_layers * self.num_kv_heads * row_width(self.head_dim, dtype) * dtype.itemsize

    def kv_bytes_read(self, tokens: int, context: int, dtype: torch.dtype) -> int:
        """Bytes of K and V that `tokens` query tokens read in all layers, the last of them from `context` keys.

        A key that several of them read counts once. In a layer with a window, those that none of them may read do not
        count.
        """
        keys = sum(context if window is None else min(context, window + tokens - 1) for window in self.windows)
        return keys * self.kv_bytes_per_token(dtype) // self.num_layers

    def bytes_read(self, context: int, dtype: torch.dtype) -> int:
        """Bytes that a forward pass with logits reads: all weights once, however few tokens it has, and all K/V.

        `context` counts the tokens with K/V of all sequences in the batch. Windows are not looked at.
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
        hidden, mlp, fused = self.hidden_size, self.mlp_size, self.family.fused
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        before, behind, before_mlp, behind_mlp = ({name: ((hidden,), False)} for name in self.family.norms)
        qkv = {"qkv_proj": q + 2 * kv} if fused else {"q_proj": q, "k_proj": kv, "v_proj": kv}
        gate_up = {"gate_up_proj": 2 * mlp} if fused else {"gate_proj": mlp, "up_proj": mlp}
        parts: dict[str, tuple[tuple[int, ...], bool]] = {  # the shape of a weight, and whether there is a bias
            **before,
            **{f"self_attn.{name}": ((rows, hidden), self.qkv_bias) for name, rows in qkv.items()},
            "self_attn.o_proj": ((hidden, q), self.o_bias),
            **behind,
            **before_mlp,
            **{f"mlp.{name}": ((rows, hidden), self.mlp_bias) for name, rows in gate_up.items()},
            "mlp.down_proj": ((hidden, mlp), self.mlp_bias),
            **behind_mlp,
        }
        shapes = {f"{name}.weight": shape for name, (shape, _) in parts.items() if name}
        shapes |= {f"{name}.bias": shape[:1] for name, (shape, biased) in parts.items() if biased}
        if self.family.qk_norm:
            whole_row = self.family.qk_norm == "row"
            shapes["self_attn.q_norm.weight"] = (q if whole_row else self.head_dim,)
            shapes["self_attn.k_norm.weight"] = (kv if whole_row else self.head_dim,)
        return shapes


def _require_implemented(config: Mapping[str, Any]) -> None:
    """Raises `UnsupportedModel` if the model needs something that `Model` does not compute."""
    family, activation = config.get("model_type"), _activation(config)
    rotated = config.get("partial_rotary_factor") or 1  # share of each head
    for is_missing, feature in [
        (family not in list(FAMILIES), f"model_type {family!r} (only {', '.join(FAMILIES)})"),
        (activation not in ("silu", "gelu_pytorch_tanh"), f"hidden_act {activation!r} (only silu, gelu_pytorch_tanh)"),
        (
            rotated != 1 and not FAMILIES.get(family, Family()).partial_rope,
            "partial_rotary_factor (only whole heads are rotated, but in phi3)",
        ),
        (config.get("attn_logit_softcapping"), "attn_logit_softcapping"),
        (config.get("final_logit_softcapping"), "final_logit_softcapping"),
        (config.get("use_bidirectional_attention"), "use_bidirectional_attention (only causal attention)"),
        ("quantization_config" in config, "quantised weights (only plain float tensors)"),
    ]:
        if is_missing:
            raise UnsupportedModel(f"minstate does not implement {feature}")


def _activation(config: Mapping[str, Any]) -> Any:
    return config.get("hidden_activation") or config.get("hidden_act") or "silu"


def _read_shape(config: Mapping[str, Any], family: Family) -> ModelConfig:
    """The shape as `config.json` names it."""
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    has_bias = bool(config.get("attention_bias", False))
    pre_scalar = config.get("query_pre_attn_scalar")
    sliding, rotated = _read_layers(config, family)
    full_rope, local_rope = _read_ropes(config, family, head_dim)
    window = config["sliding_window"] if any(sliding) else None
    return ModelConfig(
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        mlp_size=config["intermediate_size"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        head_dim=head_dim,
        vocab_size=config["vocab_size"],
        max_positions=config["max_position_embeddings"],
        norm_eps=config["rms_norm_eps"],
        tied_embeddings=config.get("tie_word_embeddings", family.tied),
        ropes=tuple(
            (local_rope if slides else full_rope) if rotates else Rope(head_dim, kind="none")
            for slides, rotates in zip(sliding, rotated, strict=True)
        ),
        windows=tuple(window if slides else None for slides in sliding),
        family=family,
        qkv_bias=has_bias if family.qkv_bias is None else family.qkv_bias,
        o_bias=has_bias if family.o_bias is None else family.o_bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
        activation=_activation(config),
        embedding_scale=config["hidden_size"] ** 0.5 if family.scaled else config.get("embedding_multiplier", 1.0),
        attention_scale=pre_scalar**-0.5 if pre_scalar else config.get("attention_multiplier"),
        residual_scale=config.get("residual_multiplier", 1.0),
        logits_scale=1 / config.get("logits_scaling", 1.0),
    )


def _read_layers(config: Mapping[str, Any], family: Family) -> tuple[list[bool], list[bool]]:
    """Of each layer: whether it has a sliding window, and whether it sees positions."""
    layers, every = range(config["num_hidden_layers"]), family.no_rope_every
    every = every and config.get("no_rope_layer_interval", every)
    rotated = config.get("no_rope_layers") if every else None
    rotated = [not every or (i + 1) % every != 0 for i in layers] if rotated is None else list(map(bool, rotated))
    every = config.get("sliding_window_pattern", family.full_every)
    kinds = config.get("layer_types") if every != 0 else None
    if family.full_every is None and not config.get("use_sliding_window"):
        sliding = [False for _ in layers]
    elif kinds is not None:
        if unknown := set(kinds) - {FULL, SLIDING}:
            raise UnsupportedModel(f"minstate does not implement layer_types {sorted(unknown)}")
        sliding = [kind == SLIDING for kind in kinds]
    elif every is not None:
        sliding = [not every or (i + 1) % every != 0 for i in layers]
    elif family.no_rope_every:
        sliding = [not rotates for rotates in rotated]
    else:
        sliding = [i >= config["max_window_layers"] for i in layers]
    for name, values in [("layer_types", sliding), ("no_rope_layers", rotated)]:
        if len(values) != len(layers):
            raise DamagedWeights(f"config.json has {len(values)} {name} for {len(layers)} layers")
    return sliding, rotated


def _read_ropes(config: Mapping[str, Any], family: Family, head_dim: int) -> tuple[Rope, Rope]:
    """The rotation of layers without a sliding window, and of those with one. Raises as `Rope.of` does."""
    settings = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(settings, dict):
        raise DamagedWeights(f"config.json describes its rotary embedding as {settings!r}, which is not an object")
    local = {"rope_theta": config.get("rope_local_base_freq", family.local_theta)} if family.local_theta else settings
    if FULL in settings or SLIDING in settings:  # each kind of layer has settings of its own
        settings, local = settings.get(FULL) or {}, settings.get(SLIDING) or local
    shared = {"partial_rotary_factor": config.get("partial_rotary_factor")} if family.partial_rope else {}
    full_rope, local_rope = (
        Rope.of(
            shared | each,
            theta=config.get("rope_theta") or family.theta,
            head_dim=head_dim,
            original=config.get("original_max_position_embeddings") or 0,
            max_positions=config["max_position_embeddings"],
        )
        for each in (settings, local)
    )
    return full_rope, local_rope
