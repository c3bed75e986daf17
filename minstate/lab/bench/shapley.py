"""How much of a gain each of several mechanisms contributes: Shapley values, which depend on no order."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import factorial


def subsets(players: Sequence[str]) -> list[frozenset[str]]:
    """All subsets of the players, the smaller ones first."""
    return [frozenset(chosen) for size in range(len(players) + 1) for chosen in combinations(players, size)]


def shapley(players: Sequence[str], value: Mapping[frozenset[str], float]) -> dict[str, float]:
    """What each player adds, averaged over all orders in which the players can join (Shapley, 1953).

    value  of every subset of the players. The results add up to the value of all players less that of none
    """
    count, shares = len(players), dict.fromkeys(players, 0.0)
    for others in subsets(players):
        for player in players:
            if player not in others:
                orders = factorial(len(others)) * factorial(count - len(others) - 1)
                shares[player] += orders / factorial(count) * (value[others | {player}] - value[others])
    return shares


def interaction(players: Sequence[str], value: Mapping[frozenset[str], float]) -> dict[tuple[str, str], float]:
    """What each pair adds together beyond what its players add without each other, averaged over the sets of others.

    Negative: the two can replace each other. Positive: they need each other. This is the Shapley interaction index
    (Grabisch and Roubens, 1999). `value` is as for `shapley`.
    """
    count, indices = len(players), dict.fromkeys(combinations(players, 2), 0.0)
    for one, two in indices:
        for others in subsets([player for player in players if player not in (one, two)]):
            weight = factorial(len(others)) * factorial(count - len(others) - 2) / factorial(count - 1)
            gain = value[others | {one, two}] - value[others | {one}] - value[others | {two}] + value[others]
            indices[one, two] += weight * gain
    return indices
