"""Engines to compare with and to test on: baselines that keep less K/V, a stub model, injected faults, a soak test."""

from minstate.lab.engines.baselines import NaiveEngine, PrefixReuseEngine

__all__ = ["NaiveEngine", "PrefixReuseEngine"]
