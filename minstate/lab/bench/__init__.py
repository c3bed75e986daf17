"""Benchmarks, one a file: `python -m minstate.lab.bench NAME`. Results go to `data/results/` as JSON."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "data" / "results"
