"""Which values a `config.json` may have. A stranger wrote it, and the size of every tensor and table comes from it.

The highest values are far above those of published models; they keep a damaged file from asking for all memory.
"""

from collections.abc import Mapping
from reprlib import repr as shortened
from typing import Any

from minstate.errors import DamagedWeights

HIGHEST: dict[str, int | float] = {  # a whole number is from 1 to this; another one above 0, and at most this
    "num_hidden_layers": 2**10,
    **dict.fromkeys(("hidden_size", "intermediate_size"), 2**20),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "head_dim"), 2**12),
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "original_max_position_embeddings"), 2**24),
    **dict.fromkeys(("sliding_window", "sliding_window_pattern", "no_rope_layer_interval"), 2**24),
    **dict.fromkeys(("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"), 1e6),
    **dict.fromkeys(("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"), 1e6),
    **dict.fromkeys(("query_pre_attn_scalar", "attention_factor"), 1e6),
    **dict.fromkeys(("rms_norm_eps", "partial_rotary_factor"), 1.0),
    **dict.fromkeys(("rope_theta", "rope_local_base_freq"), 1e12),
}
SWITCHES = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
NESTED = ("rope_parameters", "rope_scaling", "full_attention", "sliding_attention")
MAY_BE_NULL = (
    "num_key_value_heads", "head_dim", "partial_rotary_factor", "sliding_window", "sliding_window_pattern",
    "attention_factor", "beta_fast", "beta_slow", "factor", "rope_theta", *SWITCHES,
)  # fmt: skip


def require_sensible(config: Mapping[str, Any]) -> None:
    """Raises `DamagedWeights`, which names the field, if one has a value that no model can have."""
    for name, value in config.items():
        most, kind = HIGHEST.get(name), type(value)
        if name in NESTED and isinstance(value, Mapping):
            require_sensible(value)
        elif value is None and name in MAY_BE_NULL:
            continue
        elif name in SWITCHES and kind is not bool:
            raise refused(name, value, "true or false")
        elif type(most) is int and (kind is not int or not 1 <= value <= most):
            raise refused(name, value, f"a whole number from 1 to {most:,}")
        elif type(most) is float and (kind not in (int, float) or not 0 < value <= most):  # NaN is in no range
            raise refused(name, value, f"a number above 0 and at most {most:g}")
    heads, hidden = config.get("num_attention_heads") or 1, config.get("hidden_size") or 0
    kv_heads, head_dim = config.get("num_key_value_heads") or 1, config.get("head_dim") or hidden // heads
    low, high = config.get("low_freq_factor", 0), config.get("high_freq_factor", 1e9)
    for is_wrong, name, value, expected in [
        (heads % kv_heads, "num_key_value_heads", kv_heads, f"a divisor of num_attention_heads, {heads}"),
        (hidden % heads and not config.get("head_dim"), "num_attention_heads", heads, f"a divisor of {hidden}"),
        (head_dim % 2, "head_dim", head_dim, "even, because a rotary embedding rotates pairs of dimensions"),
        (low >= high, "high_freq_factor", high, f"above low_freq_factor, {low}"),
    ]:
        if is_wrong:
            raise refused(name, value, expected)


def token_ids(where: str, config: Mapping[str, Any], vocab_size: int) -> set[int]:
    """The ids in `eos_token_id`: a number, a list, or null. Raises `DamagedWeights`, which names the file."""
    value = config.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(i) is not int or not 0 <= i < vocab_size for i in ids):
        raise refused("eos_token_id", value, f"ids from 0 to {vocab_size - 1}", where)
    return set(ids)


def refused(name: str, value: Any, expected: str, where: str = "config.json") -> DamagedWeights:
    """The error that says so."""
    return DamagedWeights(f"{where} says {shortened(value)} for {name}, which must be {expected}")
