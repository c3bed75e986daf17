"""Benchmarks, one a file: `python -m minstate.lab.bench NAME`. Results go to `data/results/` as JSON."""

from pathlib import Path

RESULTS = Path(__file__).resolve().parents[3] / "data" / "results"
