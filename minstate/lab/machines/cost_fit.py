"""What a turn costs by its tokens, new and old: three numbers for reading a prompt, two for saying a token."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class CostFit:
    """Seconds of a turn, fitted by least squares to turns that were measured.

    Reading p tokens of a prompt of n takes `turn_s + token_s · p + pair_s · pairs(n, p)`: what a turn costs in any
    case, the linear layers, and attention. Saying a token behind n others takes `pass_s + key_s · n`: all weights are
    read, and all K/V. A naive turn reads p = n tokens, a stateful one p = Δ.
    """

    turn_s: float
    token_s: float
    pair_s: float
    pass_s: float
    key_s: float
    prefill_r2: float  # share of the variance of the measured seconds that the fit explains
    decode_r2: float

    @classmethod
    def of(cls, turns: pd.DataFrame) -> Self:
        """Fit turns without drafts, one a row: `n`, `prefilled`, `generated`, `prefill_s`, `decode_s`."""
        n, p = turns["n"].to_numpy(float), turns["prefilled"].to_numpy(float)
        said = turns["generated"].to_numpy(float) - 1  # the first token comes with the prompt
        reading = np.stack([np.ones_like(n), p, pairs(n, p)], axis=1)
        saying = np.stack([said, said * (n + (said + 1) / 2)], axis=1)
        (prefill, prefill_r2), (decode, decode_r2) = (
            _least_squares(columns, turns[name].to_numpy(float))
            for columns, name in [(reading, "prefill_s"), (saying, "decode_s")]
        )
        return cls(*prefill, *decode, prefill_r2, decode_r2)

    def prefill_s(self, n, p):
        """Seconds until the first token: a prompt of `n` tokens, of which `p` are forwarded. Numbers or arrays."""
        return self.turn_s + self.token_s * p + self.pair_s * pairs(n, p)

    def decode_s(self, n, generated):
        """Seconds of the other tokens, one a pass."""
        said = generated - 1
        return said * (self.pass_s + self.key_s * (n + (said + 1) / 2))


def pairs(n, p):
    """How many (query, key) pairs the last `p` of `n` tokens have, each attending to itself and all before it."""
    return p * (n - p) + p * (p + 1) / 2


def _least_squares(columns: np.ndarray, seconds: np.ndarray) -> tuple[list[float], float]:
    """Coefficients that are not negative, and the share of the variance that they explain."""
    scale = columns.max(axis=0)
    free = list(range(columns.shape[1]))
    while True:  # a negative coefficient means that the data do not show the term: leave it out
        found, *_ = np.linalg.lstsq(columns[:, free] / scale[free], seconds, rcond=None)
        if (found >= 0).all():
            break
        free.pop(int(found.argmin()))
    coefficients = np.zeros(columns.shape[1])
    coefficients[free] = found / scale[free]
    left = seconds - columns @ coefficients
    return coefficients.tolist(), float(1 - left @ left / np.square(seconds - seconds.mean()).sum())
