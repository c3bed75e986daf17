"""Rotary position embedding: how a token's position turns q and k, and how models stretch that to longer contexts.

[RoPE](https://arxiv.org/abs/2104.09864) rotates pairs of a head's dimensions by angles that grow with the position.
Each pair has a frequency of its own. A model that is extended beyond the context of its training slows them down:

    linear    all of them, by the same factor (position interpolation, https://arxiv.org/abs/2306.15595)
    llama3    the low ones only; those in between are blended
    yarn      the low ones only, on a ramp over the dimensions; scores grow a little
              (https://arxiv.org/abs/2309.00071)
    longrope  each by a factor of its own, which was searched for (https://arxiv.org/abs/2402.13753)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from minstate.errors import DamagedWeights, UnsupportedModel

# What a kind of scaling must say about itself, beyond what has a default.
SETTINGS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
}


@dataclass(frozen=True)
class Rope:
    """The rotation of some layers of a model.

    dims           how many dimensions of each head are rotated, from the first on
    theta          the base of the frequencies
    kind           a key of `SETTINGS`; or "none" for layers that do not see positions, where all angles are 0
    scaling        the settings of that kind, by their names in `config.json`
    original       positions of the context that the model was first trained for
    max_positions  positions that the model is used for
    """

    dims: int
    theta: float = 10_000.0
    kind: str = "default"
    scaling: Mapping[str, Any] = field(default_factory=dict)
    original: int = 0
    max_positions: int = 0

    @staticmethod
    def of(settings: Mapping[str, Any], *, theta: float, head_dim: int, original: int, max_positions: int) -> "Rope":
        """A rotation as `config.json` describes it; the other arguments stand in for what `settings` leaves out.

        Raises `UnsupportedModel` for another kind of scaling, `DamagedWeights` if a setting is missing or is no number.
        """
        kind = settings.get("rope_type", settings.get("type", "default"))
        kind = {"su": "longrope", "default": "default"}.get(kind, kind)
        if kind not in SETTINGS:
            raise UnsupportedModel(f"minstate does not implement rope_type {kind!r} (only {', '.join(SETTINGS)})")
        if missing := [name for name in SETTINGS[kind] if settings.get(name) is None]:
            raise DamagedWeights(f"config.json lacks {missing} for rope_type {kind!r}")
        dims = int(head_dim * (settings.get("partial_rotary_factor") or 1))
        if dims % 2 or not dims:
            raise DamagedWeights(f"config.json rotates {dims} dimensions of a head, which must be pairs")
        for name in SETTINGS["longrope"] if kind == "longrope" else ():
            _require_factors(name, settings[name], dims // 2)
        return Rope(
            dims=dims,
            theta=float(settings.get("rope_theta") or theta),
            kind=kind,
            scaling={name: value for name, value in settings.items() if name not in ("rope_type", "type")},
            original=original or settings.get("original_max_position_embeddings") or max_positions,
            max_positions=max_positions,
        )


def _require_factors(name: str, numbers: Any, pairs: int) -> None:
    """Raises `DamagedWeights` unless there is a number above 0 for each pair of dimensions."""
    is_list = isinstance(numbers, list) and len(numbers) == pairs
    if not is_list or not all(type(n) in (int, float) and 0 < n < math.inf for n in numbers):
        raise DamagedWeights(f"config.json says {str(numbers)[:80]} for {name}, which must be {pairs} numbers above 0")


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding of x `[T, heads, D]`: the same shape.

    Of R rotated dimensions, d and d + R/2 rotate together, by the angle that belongs to the token's position:

        y[d]       = x[d] · cos(angle) − x[d + R/2] · sin(angle)
        y[d + R/2] = x[d + R/2] · cos(angle) + x[d] · sin(angle)

    cos and sin, `[T, 1, R]`, are rows of `rotary_table`. They hold the minus sign, so both lines are the same sum.
    Dimensions from R on stay as they are.
    """
    dims = cos.shape[-1]
    if dims < x.shape[-1]:
        return torch.cat((rotate(x[..., :dims], cos, sin), x[..., dims:]), dim=-1)
    return torch.addcmul(x * cos, x.roll(dims // 2, dims=-1), sin)


def rotary_table(rope: Rope, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin `[positions, R]` of the rotation angles at each position, in float32, as the models were trained.

    Both halves of the R dimensions rotate by the same angles. The sine of the first half is negated, for `rotate`.
    """
    exponents = torch.arange(0, rope.dims, 2, dtype=torch.float32) / rope.dims
    frequency, amplitude = _scaled(rope.theta**exponents, rope)
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * frequency
    cos, sin = angles.cos() * amplitude, angles.sin() * amplitude
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def _scaled(period: torch.Tensor, rope: Rope) -> tuple[torch.Tensor, float]:
    """Radians per token of each pair `[R/2]`, from tokens per radian, and a factor of all cosines and sines.

    A factor of q and of k alike makes scores grow by its square.
    """
    frequency, factor = 1.0 / period, rope.scaling.get("factor") or 1.0
    match rope.kind:
        case "none":
            return 0 * frequency, 1.0
        case "linear":
            return frequency / factor, 1.0
        case "llama3":
            return _slow_down_low(frequency, rope.scaling), 1.0
        case "yarn":
            keep = 1 - _yarn_ramp(rope, len(period))
            return 1.0 / (factor * period) * (1 - keep) + frequency * keep, _yarn_amplitude(rope.scaling)
        case "longrope":
            return _longrope(period, rope)
    return frequency, 1.0


def _slow_down_low(frequency: torch.Tensor, scaling: Mapping[str, Any]) -> torch.Tensor:
    """Llama 3.1 divides low frequencies by `factor`, keeps high ones, and blends those in between.

    A frequency (radians per token) is low or high by how many turns it makes within the original context.
    """
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return keep * frequency + (1 - keep) * frequency / scaling["factor"]


def _yarn_ramp(rope: Rope, pairs: int) -> torch.Tensor:
    """How far each pair is slowed down `[R/2]`: 0 for fast pairs, 1 for those that hardly turn within the context."""

    def pair_with(turns: float) -> float:
        """Which pair makes so many turns within the original context."""
        return rope.dims * math.log(rope.original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low = pair_with(rope.scaling.get("beta_fast") or 32)
    high = pair_with(rope.scaling.get("beta_slow") or 1)
    if rope.scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dims - 1)
    high += 0.001 if low == high else 0
    return ((torch.arange(pairs, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)


def _yarn_amplitude(scaling: Mapping[str, Any]) -> float:
    def amplitude(weight: float) -> float:
        return 0.1 * weight * math.log(scaling["factor"]) + 1 if scaling["factor"] > 1 else 1.0

    if scaling.get("attention_factor") is not None:
        return scaling["attention_factor"]
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return amplitude(scaling["mscale"]) / amplitude(scaling["mscale_all_dim"])
    return amplitude(1)


def _longrope(period: torch.Tensor, rope: Rope) -> tuple[torch.Tensor, float]:
    """Of the two sets of factors, the long ones serve a model that is used beyond its original context.

    transformers goes from the short ones to the long ones when a conversation becomes that long, and computes all K/V
    again. K/V that is kept cannot change its rotation, so one set serves all positions here, as in vLLM.
    """
    factors = rope.scaling["long_factor" if rope.max_positions > rope.original else "short_factor"]
    stretch = rope.scaling.get("factor") or rope.max_positions / rope.original
    amplitude = math.sqrt(1 + math.log(stretch) / math.log(rope.original)) if stretch > 1 else 1.0
    return 1.0 / (torch.tensor(factors, dtype=torch.float32) * period), rope.scaling.get(
        "attention_factor"
    ) or amplitude
