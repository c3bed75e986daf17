"""Shapley values obey their axioms."""

from math import isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minstate.lab.bench.shapley import shapley, subsets

PLAYERS = ("a", "b", "c")


@given(st.lists(st.floats(-100, 100), min_size=8, max_size=8))
def test_shares_add_up_to_the_whole_gain(values):
    value = dict(zip(subsets(PLAYERS), values, strict=True))
    assert isclose(sum(shapley(PLAYERS, value).values()), values[-1] - values[0], abs_tol=1e-9)


@given(st.lists(st.floats(-100, 100), min_size=4, max_size=4))
def test_a_player_without_effect_gets_nothing_and_equal_players_get_the_same(values):
    others = dict(zip(subsets(("a", "b")), values, strict=True))
    shares = shapley(PLAYERS, {coalition: others[coalition - {"c"}] for coalition in subsets(PLAYERS)})
    assert shares["c"] == 0
    by_size = {coalition: values[len(coalition & {"a", "b"})] for coalition in subsets(PLAYERS)}
    shares = shapley(PLAYERS, by_size)
    assert isclose(shares["a"], shares["b"], abs_tol=1e-9)


def test_a_gain_that_either_of_two_players_brings_is_halved():
    value = {coalition: float(bool(coalition & {"a", "b"})) for coalition in subsets(PLAYERS)}
    assert shapley(PLAYERS, value) == pytest.approx({"a": 0.5, "b": 0.5, "c": 0})
