"""What a turn costs by its new and its old tokens: three coefficients for the prefill, two for decoding."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class CostFit:
    """Seconds of a turn, fitted by least squares to turns that were measured.

    To forward the last p tokens of a prompt of n takes `turn_s + token_s · p + pair_s · query_key_pairs(n, p)` seconds.
    To decode one token behind n others takes `pass_s + key_s · n`, because a forward pass reads all weights and all
    K/V. A naive turn forwards p = n tokens, a stateful turn p = Δ.
    """

    turn_s: float  # that any turn takes
    token_s: float  # of the linear layers, for each token
    pair_s: float  # of attention, for each (query, key) pair
    pass_s: float  # to read the weights once
    key_s: float  # to read the K/V of one token
    prefill_r2: float  # share of the variance of the measured seconds that the fit explains
    decode_r2: float

    @classmethod
    def of(cls, turns: pd.DataFrame) -> Self:
        """Fit turns without drafts, in rows with `n`, `prefilled`, `generated`, `prefill_s` and `decode_s`."""
        n, p = turns["n"].to_numpy(float), turns["prefilled"].to_numpy(float)
        decoded = turns["generated"].to_numpy(float) - 1  # the prefill yields the first token
        prefill_terms = np.stack([np.ones_like(n), p, query_key_pairs(n, p)], axis=1)
        decode_terms = np.stack([decoded, decoded * (n + (decoded + 1) / 2)], axis=1)
        (prefill, prefill_r2), (decode, decode_r2) = (
            _least_squares(terms, turns[name].to_numpy(float))
            for terms, name in [(prefill_terms, "prefill_s"), (decode_terms, "decode_s")]
        )
        return cls(*prefill, *decode, prefill_r2, decode_r2)

    def prefill_s(self, n, p):
        """Seconds until the first token, for prompts of `n` tokens of which `p` are forwarded. Numbers or arrays."""
        return self.turn_s + self.token_s * p + self.pair_s * query_key_pairs(n, p)

    def decode_s(self, n, generated):
        """Seconds of the tokens after the first, one for each forward pass."""
        decoded = generated - 1
        return decoded * (self.pass_s + self.key_s * (n + (decoded + 1) / 2))


def query_key_pairs(n, p):
    """How many (query, key) pairs the last `p` of `n` tokens have: a token attends to itself and all before it."""
    return p * (n - p) + p * (p + 1) / 2


def _least_squares(terms: np.ndarray, seconds: np.ndarray) -> tuple[list[float], float]:
    """Coefficients that are not negative, one for each column, and the share of the variance that they explain."""
    scale = terms.max(axis=0)
    free = list(range(terms.shape[1]))
    while True:  # a negative coefficient means that the data do not show the term: leave it out
        found, *_ = np.linalg.lstsq(terms[:, free] / scale[free], seconds, rcond=None)
        if (found >= 0).all():
            break
        free.pop(int(found.argmin()))
    coefficients = np.zeros(terms.shape[1])
    coefficients[free] = found / scale[free]
    residuals = seconds - terms @ coefficients
    return coefficients.tolist(), float(1 - residuals @ residuals / np.square(seconds - seconds.mean()).sum())
