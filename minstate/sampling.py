"""From logits to a token. The noise depends on nothing but the seed and the token's position."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch

from minstate.arguments import plain, real_number, whole_number
from minstate.chat.grammar import Constraint
from minstate.errors import BadValue, NonFiniteLogits
from minstate.model_files import GENERATION, read_json
from minstate.weights import find_model

RANGES = {  # of the settings that are real numbers; True: the lower end is not included
    "temperature": (0, sys.float_info.max), "top_p": (0, 1, True), "min_p": (0, 1),
    "repetition_penalty": (0.01, 100), "presence_penalty": (-2, 2), "frequency_penalty": (-2, 2),
}  # fmt: skip


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. The default is greedy: always the most likely token.

    The settings work in this order, on each token that the grammar does not force:

    logit_bias          {token id: number that is added to its logit}, −100 to 100, as in OpenAI's API
    repetition_penalty  divides the logits above 0, and multiplies those below, of all tokens that are in the log: old
                        turns, the prompt and the output so far, as in transformers and vLLM
                        ([Keskar et al.](https://arxiv.org/abs/1909.05858)); 0.01 to 100; 1 for none
    frequency_penalty   is subtracted from a token's logit for each time that this turn has generated it; −2 to 2
    presence_penalty    is subtracted once if this turn has generated the token, as in OpenAI's API; −2 to 2
    temperature         divides the logits; 0 is greedy
    top_k               only the k most likely tokens; 0 for all
    top_p               only the most likely tokens that together reach this probability
                        ([nucleus sampling](https://arxiv.org/abs/1904.09751)); 1 for all
    min_p               only tokens at least this fraction as likely as the most likely token
                        ([min-p sampling](https://arxiv.org/abs/2407.01082)); 0 for all

    A grammar excludes tokens between the penalties and the temperature. The other settings:

    seed        of the noise. The noise at a position is the same in any batch, and after any eviction
    stop        a turn ends when its text contains one of these strings, or at one of these token ids
    ignore_eos  do not end a turn at the model's own end-of-sequence tokens

    `logit_bias` is stored as a sorted tuple of pairs, so that a `Sampling` can be hashed. Raises `BadValue` if a value
    is outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    stop: tuple[str | int, ...] = ()
    ignore_eos: bool = False
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        numbers = {name: real_number(name, getattr(self, name), *limits) for name, limits in RANGES.items()}
        numbers |= {"top_k": whole_number("top_k", self.top_k), "seed": whole_number("seed", self.seed, 0, 2**64 - 1)}
        for name, value in {**numbers, "stop": _stops(self.stop), "logit_bias": _biases(self.logit_bias)}.items():
            object.__setattr__(self, name, value)

    @property
    def has_penalties(self) -> bool:
        """Whether logits are changed before temperature and filters."""
        return self.repetition_penalty != 1 or any((self.presence_penalty, self.frequency_penalty, self.logit_bias))

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


def _stops(given) -> tuple[str | int, ...]:
    """Stop strings and token ids as a tuple. Raises `BadValue`."""
    stops = plain(given)
    stops = [plain(stop) for stop in stops] if isinstance(stops, tuple | list) else [stops]
    if bad := [stop for stop in stops if isinstance(stop, bool) or not isinstance(stop, str | int) or stop == ""]:
        raise BadValue(f"stop takes non-empty strings and token ids, not {bad[0]!r}")
    return tuple(stops)


def _biases(given) -> tuple[tuple[int, float], ...]:
    """Token ids and their biases, sorted by token id. Raises `BadValue`."""
    try:
        pairs = dict(given).items()
    except (TypeError, ValueError) as error:
        raise BadValue(f"logit_bias takes {{token id: bias}}, not {given!r}") from error
    checked = [(whole_number("an id in logit_bias", i), real_number("logit_bias", x, -100, 100)) for i, x in pairs]
    return tuple(sorted(checked))


class Penalties:
    """What a turn adds to its logits, and takes from them: bias and penalties, as `Sampling` describes them.

    Setting it up takes time in proportion to the log, once a turn. Counting a token that the turn has generated takes
    constant time.
    """

    def __init__(self, sampling: Sampling, log: list[int], vocab_size: int):
        self.sampling = sampling
        # `[vocab]` each: 1 for what is in the log as the turn's output begins; how often the output has it; its bias.
        self.in_prompt, self.generated, self.bias = torch.zeros(3, vocab_size, dtype=torch.float64)
        self.in_prompt[log] = 1
        for token, bias in dict(sampling.logit_bias).items():
            self.bias[token] = bias

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits `[vocab]` of the next token with bias and penalties, in float64 in the host's memory."""
        penalty, logits = self.sampling.repetition_penalty, logits.cpu().double() + self.bias
        repeated = torch.where(logits < 0, logits * penalty, logits / penalty)
        logits = torch.where(self.in_prompt + self.generated > 0, repeated, logits)
        logits = logits - self.sampling.frequency_penalty * self.generated
        return logits - self.sampling.presence_penalty * (self.generated > 0)


def choose(
    logits: torch.Tensor,
    sampling: Sampling,
    position: int,
    constraint: Constraint | None = None,
    best: int | None = None,
    penalties: Penalties | None = None,
) -> int:
    """The token for `position` of its sequence, from logits `[vocab]`; `best` is their arg-max, if it is known.

    A `constraint` excludes tokens after the penalties, and before any filter does. Its mask is computed only if the
    choice depends on it. Logits are copied from a GPU only if the choice depends on penalties, on a mask or on noise.

    Raises `NonFiniteLogits` if the constraint allows no token that has a finite logit.
    """
    if constraint and constraint.forced:
        return constraint.forced[0]
    if penalties:
        logits, best = penalties.apply(logits), None
    if sampling.temperature == 0:
        best = int(logits.argmax()) if best is None else best
        if constraint is None or constraint.allows(best):
            return best
    logits = logits.cpu()
    if constraint:
        logits = logits.masked_fill(~torch.from_numpy(constraint.mask(len(logits))), -torch.inf)
        if logits.max() == -torch.inf:
            raise NonFiniteLogits(f"each token that the grammar allows at position {position} has the logit −infinity")
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
