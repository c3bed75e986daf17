"""How far a measured statistic may lie from its true value, from the spread of the observations alone."""

from collections.abc import Callable

import numpy as np


def bootstrap_interval(
    statistic: Callable[[np.ndarray], np.ndarray], count: int, *, resamples: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval of a statistic of `count` observations (Efron, Ann. Statist. 7(1), 1979; percentiles).

    statistic  of the observations whose indices it is passed, with repetitions; may be a vector
    """
    random = np.random.default_rng(seed)
    drawn = [statistic(random.integers(0, count, count)) for _ in range(resamples)]
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return low, high
