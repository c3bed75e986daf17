"""Engines to compare with and to test on: baselines that remember less, a stub model, injected faults, a soak test."""

from minstate.lab.engines.baselines import NaiveEngine, PrefixReuseEngine

__all__ = ["NaiveEngine", "PrefixReuseEngine"]
