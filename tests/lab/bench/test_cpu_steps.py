"""The benchmark of forward passes on a CPU compares each with its floor, and leaves the engine as it was."""

import pandas as pd
import pytest
import tiny
import torch

from minstate.lab.bench import cpu_steps
from minstate.lab.machines.roofline import Roofline


def test_timing_forward_passes_leaves_the_engine_as_it_was(monkeypatch):
    monkeypatch.setattr(cpu_steps, "CONTEXTS", (20, 60))
    engine = tiny.engine(positions=256)
    rows = cpu_steps.outside_forward(engine, "float64", "torch", repeats=2)
    assert [(row["context"], row["answer"]) for row in rows] == [(20, 1), (20, 33), (60, 1), (60, 33)]
    assert all(row["median ms"] > 0 for row in rows)
    assert "logits" not in vars(engine.core.runner)
    engine.check()


def test_a_pass_is_compared_with_its_floor_and_with_one_token():
    engine = tiny.engine()
    seconds = pd.DataFrame({("float32", "cpu", 64, 1): [0.5, 0.5, 2.0], ("float32", "cpu", 64, 8): [1.0, 2.0, 2.0]})
    machine = Roofline(flops_per_s=1e9, bytes_per_s=1e3)
    row = cpu_steps._row(engine, machine, "float32", "cpu", 64, 8, seconds)
    floor_s = engine.model.config.bytes_read(64, torch.float32) / 1e3
    assert row["median ms"] == 2000 and row["times one token"] == 2 and row["floor ms"] == pytest.approx(1000 * floor_s)
