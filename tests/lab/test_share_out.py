"""Gains are shared out as Shapley's axioms say, and costs are fitted as they were made."""

from itertools import pairwise
from math import isclose

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minstate.lab.bench.ablation import LADDER, MECHANISMS, name_of
from minstate.lab.bench.shapley import bootstrap, shapley, subsets
from minstate.lab.machines.cost_fit import CostFit, pairs

PLAYERS = ("a", "b", "c")


@given(st.lists(st.floats(-100, 100), min_size=8, max_size=8))
def test_shares_add_up_to_the_whole_gain(values):
    value = dict(zip(subsets(PLAYERS), values, strict=True))
    assert isclose(sum(shapley(PLAYERS, value).values()), values[-1] - values[0], abs_tol=1e-9)


@given(st.lists(st.floats(-100, 100), min_size=4, max_size=4))
def test_who_changes_nothing_gets_nothing_and_equals_get_the_same(values):
    others = dict(zip(subsets(("a", "b")), values, strict=True))
    shares = shapley(PLAYERS, {some: others[some - {"c"}] for some in subsets(PLAYERS)})
    assert shares["c"] == 0
    by_size = {some: values[len(some & {"a", "b"})] for some in subsets(PLAYERS)}
    shares = shapley(PLAYERS, by_size)
    assert isclose(shares["a"], shares["b"], abs_tol=1e-9)


def test_a_gain_that_either_of_two_brings_is_halved():
    value = {some: float(bool(some & {"a", "b"})) for some in subsets(PLAYERS)}
    assert shapley(PLAYERS, value) == pytest.approx({"a": 0.5, "b": 0.5, "c": 0})


def test_an_interval_holds_what_the_samples_come_from():
    seen = np.random.default_rng(1).normal(3.0, 1.0, 400)
    low, high = bootstrap(lambda at: seen[at].mean(), len(seen))
    assert low < 3.0 < high and 0.15 < high - low < 0.25  # ± 1.96 / √400


def test_every_combination_of_mechanisms_has_a_name_of_its_own():
    names = [name_of(some) for some in subsets(MECHANISMS)]
    assert len(set(names)) == 2 ** len(MECHANISMS) and set(LADDER) < set(names)
    assert all(smaller < larger for smaller, larger in pairwise(LADDER.values()))


def test_pairs_are_counted_as_a_mask_would():
    for n, p in [(1, 1), (5, 2), (7, 7)]:
        mask = np.tril(np.ones((n, n)))
        assert pairs(n, p) == mask[n - p :].sum()


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
