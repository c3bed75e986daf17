"""The bootstrap interval holds the true value."""

import numpy as np

from minstate.lab.bench.bootstrap import bootstrap_interval


def test_the_interval_holds_the_mean_of_the_distribution():
    seen = np.random.default_rng(1).normal(3.0, 1.0, 400)
    low, high = bootstrap_interval(lambda at: seen[at].mean(), len(seen))
    assert low < 3.0 < high and 0.15 < high - low < 0.25  # ± 1.96 / √400
