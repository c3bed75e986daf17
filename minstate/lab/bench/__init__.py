"""Benchmarks, one a file: `python -m minstate.lab.bench NAME`. Results go to `data/results/` as JSON.

Without a clone of the repository they go to `results/`, below the working directory.
"""

from minstate.lab.paths import RESULTS

__all__ = ["RESULTS"]
