"""Shapley values obey their axioms."""

from math import isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minstate.lab.bench.shapley import interaction, shapley, subsets

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


@given(st.lists(st.floats(-100, 100), min_size=8, max_size=8))
def test_the_interaction_of_two_players_alone_is_what_they_add_together(values):
    value = dict(zip(subsets(PLAYERS), values, strict=True))
    for pair, index in interaction(PLAYERS, value).items():
        (third,) = set(PLAYERS) - set(pair)
        one, two = ({player} for player in pair)
        with_third, without = (
            value[other | one | two] - value[other | one] - value[other | two] + value[other]
            for other in (frozenset({third}), frozenset())
        )
        assert isclose(index, (with_third + without) / 2, abs_tol=1e-9)


def test_players_who_replace_each_other_interact_negatively_and_those_who_need_each_other_positively():
    either, both = (
        {coalition: float(rule(name in coalition for name in "ab")) for coalition in subsets(PLAYERS)}
        for rule in (any, all)
    )
    assert interaction(PLAYERS, either) == pytest.approx({("a", "b"): -1, ("a", "c"): 0, ("b", "c"): 0})
    assert interaction(PLAYERS, both) == pytest.approx({("a", "b"): 1, ("a", "c"): 0, ("b", "c"): 0})
