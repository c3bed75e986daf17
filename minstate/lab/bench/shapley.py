"""How much of a gain belongs to which mechanism: Shapley values, which do not depend on an order of adding them."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from math import factorial

import numpy as np


def subsets(players: Sequence[str]) -> list[frozenset[str]]:
    """All subsets, the smaller ones first."""
    return [frozenset(some) for size in range(len(players) + 1) for some in combinations(players, size)]


def shapley(players: Sequence[str], value: Mapping[frozenset[str], float]) -> dict[str, float]:
    """What each player adds, on average over all orders in which the players may come (Shapley, 1953).

    value  of every subset of the players; the results add up to that of all of them, less that of none
    """
    count, shares = len(players), dict.fromkeys(players, 0.0)
    for some in subsets(players):
        for player in players:
            if player not in some:
                orders = factorial(len(some)) * factorial(count - len(some) - 1)
                shares[player] += orders / factorial(count) * (value[some | {player}] - value[some])
    return shares


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], count: int, *, resamples: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval of a statistic of `count` observations (Efron, Ann. Statist. 7(1), 1979; percentiles).

    statistic  of the observations whose numbers it is given, with repetitions; may be a vector
    """
    random = np.random.default_rng(seed)
    drawn = [statistic(random.integers(0, count, count)) for _ in range(resamples)]
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return low, high
