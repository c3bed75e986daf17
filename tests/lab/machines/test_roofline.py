"""The roofline: arithmetic against memory. Rates are only required to be positive; a test asserts no clock."""

import pytest
import torch

from minstate.lab.machines.roofline import CountOperations, Roofline, measure_roofline, seconds_each


def test_the_slower_of_arithmetic_and_memory_sets_the_floor():
    machine = Roofline(flops_per_s=100.0, bytes_per_s=10.0)
    assert machine.floor_s(flops=50, bytes_read=10) == 1.0, "one second of reading hides half a second of arithmetic"
    assert machine.floor_s(flops=300, bytes_read=10) == 3.0, "three seconds of arithmetic hide one of reading"


def test_at_the_ridge_both_take_equally_long():
    machine = Roofline(flops_per_s=100.0, bytes_per_s=10.0)
    assert machine.ridge == 10.0
    assert machine.floor_s(flops=7 * machine.ridge, bytes_read=7) == pytest.approx(7 / machine.bytes_per_s)


def test_the_measured_machine_has_positive_rates():
    machine = measure_roofline(size=64, megabytes=1, repeats=2)
    assert machine.flops_per_s > 0
    assert machine.bytes_per_s > 0


def test_warm_up_calls_are_made_but_not_counted():
    calls = []
    assert len(seconds_each(lambda: calls.append(1), repeats=3, warmup=2)) == 3
    assert len(calls) == 5


@torch.inference_mode()
def test_operations_are_counted_where_the_block_says():
    a = torch.ones(3)
    with CountOperations() as operations:
        b = (a + 1) * 2
    b.sum()
    assert operations.count == 2
