"""From logits to a token. The noise depends on nothing but the seed and the token's position."""

import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch

from minstate.chat.grammar import Constraint
from minstate.errors import BadValue
from minstate.model_files import GENERATION, read_json
from minstate.weights import find_model

MAX_FLOAT = sys.float_info.max


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. The default is greedy: always the most likely token.

    temperature  divides the logits; 0 is greedy
    top_k        only the k most likely tokens; 0 for all
    top_p        only the most likely tokens that together reach this probability
                 ([nucleus sampling](https://arxiv.org/abs/1904.09751)); 1 for all
    min_p        only tokens at least this fraction as likely as the most likely token
                 ([min-p sampling](https://arxiv.org/abs/2407.01082)); 0 for all
    seed         of the noise. The noise at a position is the same in any batch, and after any eviction
    stop         a turn ends when its text contains one of these strings, or at one of these token ids
    ignore_eos   do not end a turn at the model's own end-of-sequence tokens

    Raises `BadValue` if a value is outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    stop: tuple[str | int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        is_single = isinstance(self.stop, str | int)
        if not is_single and not isinstance(self.stop, tuple | list):
            raise BadValue(f"stop takes strings and token ids, not {self.stop!r}")
        object.__setattr__(self, "stop", (self.stop,) if is_single else tuple(self.stop))
        for name, value, is_in_range, expected in [
            ("temperature", self.temperature, lambda t: 0 <= t <= MAX_FLOAT, "a number from 0 up"),
            ("top_k", self.top_k, lambda k: isinstance(k, int) and k >= 0, "a whole number from 0 up"),
            ("top_p", self.top_p, lambda p: 0 < p <= 1, "above 0 and at most 1"),
            ("min_p", self.min_p, lambda p: 0 <= p <= 1, "from 0 to 1"),
            ("seed", self.seed, lambda s: isinstance(s, int) and 0 <= s < 2**64, "a whole number from 0 to 2**64 - 1"),
        ]:
            if isinstance(value, bool) or not isinstance(value, int | float) or not is_in_range(value):
                raise BadValue(f"{name} must be {expected}, not {value!r}")
        for stop in self.stop:
            if isinstance(stop, bool) or not isinstance(stop, str | int) or stop == "":
                raise BadValue(f"stop takes non-empty strings and token ids, not {stop!r}")

    @staticmethod
    def from_pretrained(name: str | Path | None = None) -> "Sampling":
        """What the model's maker recommends in `generation_config.json`; the default if there is no such file.

        name  of the model, as for `Engine.from_pretrained`

        `do_sample: false` means temperature 0; `do_sample: true` without a temperature means 1, as in transformers.
        Raises `BadValue` if a value is outside its range, `ModelNotFound`, `DamagedWeights`.
        """
        folder = find_model(name)
        says = read_json(folder, GENERATION) if (folder / GENERATION).exists() else {}
        own = {field.name: says[field.name] for field in fields(Sampling) if says.get(field.name) is not None}
        if (samples := says.get("do_sample")) is not None:
            own["temperature"] = own.get("temperature", 1.0) if samples else 0.0
        return Sampling(**own)

    def for_fork(self, lineage: tuple[int, ...]) -> "Sampling":
        """The same settings with a seed of its own for the fork that `lineage` names. `()` names no fork: no change."""
        if not lineage:
            return self
        seed = np.random.SeedSequence(self.seed, spawn_key=lineage).generate_state(1, np.uint64)[0]
        return replace(self, seed=int(seed))


def choose(
    logits: torch.Tensor,
    sampling: Sampling,
    position: int,
    constraint: Constraint | None = None,
    best: int | None = None,
) -> int:
    """The token for `position` of its sequence, from logits `[vocab]`; `best` is their arg-max, if it is known.

    A `constraint` excludes tokens before any filter does. Its mask is computed only if the choice depends on it. Logits
    are copied from a GPU only if the choice depends on a mask or on noise.
    """
    if constraint and constraint.forced:
        return constraint.forced[0]
    if sampling.temperature == 0:
        best = int(logits.argmax()) if best is None else best
        if constraint is None or constraint.allows(best):
            return best
    logits = logits.cpu()
    if constraint:
        logits = logits.masked_fill(~torch.from_numpy(constraint.mask(len(logits))), -torch.inf)
    if sampling.temperature == 0:
        return int(logits.argmax())
    probabilities = _filtered_probabilities(logits, sampling)
    # Inverse transform sampling: a uniform number, keyed by (seed, position), falls into one token's share of [0, 1).
    uniform = np.random.Generator(np.random.Philox(key=np.array([sampling.seed, position], dtype=np.uint64))).random()
    cumulative = probabilities.cumsum(0)
    token = int(torch.searchsorted(cumulative, uniform * cumulative[-1], right=True))
    return min(token, int(probabilities.nonzero()[-1]))  # rounding may put the number at the end of the last share


def _filtered_probabilities(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Probabilities `[vocab]` in float64, zero where top-k, min-p or top-p exclude a token; not normalised again."""
    shifted = logits.double() - logits.max()  # at most 0, so that no temperature can overflow
    probabilities = torch.softmax(shifted / sampling.temperature, dim=0)
    keep = probabilities >= sampling.min_p * probabilities.max()
    if sampling.top_k or sampling.top_p < 1:
        ordered, order = probabilities.sort(descending=True, stable=True)
        keep_ordered = ordered.cumsum(0) - ordered < sampling.top_p  # the token that reaches top_p is kept too
        if sampling.top_k:
            keep_ordered[sampling.top_k :] = False
        keep &= torch.zeros_like(keep).scatter(0, order, keep_ordered)
    return probabilities * keep
