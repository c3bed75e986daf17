"""Sampling draws from the distribution that its settings describe; its noise depends on seed and position only."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minstate import BadValue, Sampling
from minstate.sampling import choose

LOGITS = torch.tensor([2.0, 1.5, 0.5, 0.0, -1.0, -30.0])


def draw(count: int, logits=LOGITS, **options) -> torch.Tensor:
    """How often each token is drawn at `count` positions."""
    sampling = Sampling(seed=5, **options)
    return torch.bincount(
        torch.tensor([choose(logits, sampling, position) for position in range(count)]), minlength=len(logits)
    )


def test_greedy_is_the_most_likely_token():
    assert draw(3).tolist() == [3, 0, 0, 0, 0, 0]


def test_a_greedy_choice_does_not_read_logits_whose_arg_max_is_known():
    assert (
        choose(None, Sampling(), 0, best=4) == 4
    )  # on a GPU, to read them is to copy the logits of the whole vocabulary


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_draws_follow_the_softmax(temperature):
    expected = 4000 * torch.softmax(LOGITS.double() / temperature, 0)[:5]
    counts = draw(4000, temperature=temperature)[:5]
    assert ((counts - expected) ** 2 / expected).sum() < 18.5, "chi-square, 4 degrees of freedom, p = 0.001"


@pytest.mark.parametrize(
    "options, allowed",
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 1}, {0}),
        ({"top_p": 0.5}, {0, 1}),  # the first token has probability 0.47, so the second is kept too
        ({"top_p": 1e-9}, {0}),
        ({"min_p": 0.2}, {0, 1, 2}),  # the third is e^-1.5 = 0.22 times as likely as the first
        ({"min_p": 1.0}, {0}),
        ({"top_k": 3, "top_p": 0.99, "min_p": 0.5}, {0, 1}),
    ],
)
def test_filters_exclude_the_unlikely_and_nothing_else(options, allowed):
    counts = draw(600, temperature=1.0, **options)
    assert {token for token, count in enumerate(counts) if count} == allowed


@given(seed=st.integers(0, 2**64 - 1), position=st.integers(0, 10_000))
def test_the_same_seed_and_position_give_the_same_token(seed, position):
    sampling = Sampling(temperature=1.0, seed=seed)
    assert choose(LOGITS, sampling, position) == choose(LOGITS.clone(), sampling, position)


def test_other_seeds_give_other_draws():
    tokens = [[choose(LOGITS, Sampling(temperature=2.0, seed=s), p) for p in range(30)] for s in (0, 1)]
    assert tokens[0] != tokens[1]


def test_a_token_of_probability_zero_is_never_drawn():
    logits = torch.tensor([-math.inf, 0.0, 0.0, -math.inf])
    assert set(draw(300, logits, temperature=5.0).nonzero()[:, 0].tolist()) == {1, 2}


@pytest.mark.parametrize(
    "name, values",
    {
        "temperature": [-0.1, math.nan, math.inf, "hot", True],
        "top_k": [-1, 1.5, None],
        "top_p": [0, 1.1, math.nan],
        "min_p": [-0.1, 1.1],
        "seed": [-1, 2**64, 1.5],
        "stop": [("",), (1.5,), (None,)],
    }.items(),
)
def test_absurd_values_are_refused(name, values):
    for value in values:
        with pytest.raises(BadValue, match=name):
            Sampling(**{name: value})


def test_a_single_stop_string_needs_no_tuple():
    assert Sampling(stop="abc").stop == ("abc",)
