"""The cost fit finds the coefficients that made the turns."""

import numpy as np
import pandas as pd
import pytest

from minstate.lab.machines.cost_fit import CostFit, query_key_pairs


def test_there_are_as_many_pairs_as_in_a_causal_mask():
    for n, p in [(1, 1), (5, 2), (7, 7)]:
        mask = np.tril(np.ones((n, n)))
        assert query_key_pairs(n, p) == mask[n - p :].sum()


def turns(fit, noise=0.0):
    random = np.random.default_rng(0)
    n = random.integers(100, 8000, 60)
    p = np.where(random.random(60) < 0.5, n, np.minimum(n, random.integers(20, 400, 60)))
    generated = random.integers(2, 90, 60)
    return pd.DataFrame(
        {
            "n": n,
            "prefilled": p,
            "generated": generated,
            "prefill_s": fit.prefill_s(n, p) + noise * random.normal(size=60),
            "decode_s": fit.decode_s(n, generated),
        }
    )


def test_a_fit_finds_the_costs_that_made_the_turns():
    made = CostFit(0.01, 2e-3, 3e-8, 0.03, 2e-6, 1, 1)
    found = CostFit.of(turns(made))
    for name in ("turn_s", "token_s", "pair_s", "pass_s", "key_s", "prefill_r2", "decode_r2"):
        assert getattr(found, name) == pytest.approx(getattr(made, name), rel=1e-6), name


def test_no_cost_is_negative_whatever_the_noise():
    made = CostFit(0.0, 2e-3, 0.0, 0.03, 0.0, 1, 1)
    for seed in range(20):
        noisy = turns(made)
        noisy["prefill_s"] += np.random.default_rng(seed).normal(0, 0.5, len(noisy))
        found = CostFit.of(noisy)
        assert min(found.turn_s, found.token_s, found.pair_s) >= 0 and found.prefill_r2 < 1
