"""Seconds of a turn on a machine follow from its data sheet, or from the fit to turns that were measured."""

import pytest

from minstate.draft_budget import CostTable
from minstate.lab.machines.cost_fit import CostFit
from minstate.lab.machines.data_sheets import DTYPE, LLAMA_8B, SMOLLM2_135M, h100
from minstate.lab.machines.turn_seconds import (
    MAX_DRAFT,
    PREFILL_CHUNK,
    DataSheetMachine,
    FittedMachine,
    decode_s,
    gpu_seconds,
    sessions_that_fit,
)

ONE = DataSheetMachine.of_h100(1)
FIT = CostFit(0.05, 0.003, 1e-7, 0.07, 1e-5, 0.99, 0.9)
CORES = FittedMachine(FIT, SMOLLM2_135M, CostTable.default("float32"))


def test_a_prefill_takes_as_long_as_its_chunks():
    n = 2 * PREFILL_CHUNK + 100
    passes = [(PREFILL_CHUNK, PREFILL_CHUNK), (PREFILL_CHUNK, 2 * PREFILL_CHUNK), (100, n)]
    seconds = [
        ONE.hardware.seconds(LLAMA_8B.flops(count, end, 1 if end == n else 0), LLAMA_8B.bytes_read(end, DTYPE))
        for count, end in passes
    ]
    assert ONE.prefill_s(LLAMA_8B, n, n) == pytest.approx(sum(seconds))
    assert ONE.prefill_s(LLAMA_8B, n, 100) == pytest.approx(seconds[-1]), "cached tokens are not forwarded"


@pytest.mark.parametrize("machine", [ONE, CORES], ids=["data sheet", "fitted"])
def test_time_grows_with_the_new_tokens_and_with_the_context(machine):
    assert machine.prefill_s(LLAMA_8B, 8_000, 8_000) > machine.prefill_s(LLAMA_8B, 8_000, 500)
    assert machine.prefill_s(LLAMA_8B, 64_000, 500) > machine.prefill_s(LLAMA_8B, 8_000, 500)
    assert machine.pass_s(LLAMA_8B, 1, 64_000) > machine.pass_s(LLAMA_8B, 1, 8_000)
    assert machine.pass_s(LLAMA_8B, 8, 8_000) >= machine.pass_s(LLAMA_8B, 1, 8_000)


def test_the_fitted_machine_gives_back_the_fit_for_the_model_that_was_measured():
    assert CORES.prefill_s(SMOLLM2_135M, 2_000, 300) == pytest.approx(FIT.prefill_s(2_000, 300))
    assert decode_s(CORES, SMOLLM2_135M, 2_000, 41) == pytest.approx(FIT.decode_s(2_000, 41), rel=0.01)


def test_a_larger_model_takes_the_fitted_machine_longer_in_proportion_to_its_weights():
    small, large = (CORES.pass_s(config, 1, 0) for config in (SMOLLM2_135M, LLAMA_8B))
    weights = [config.bytes_read(0, DTYPE) for config in (SMOLLM2_135M, LLAMA_8B)]
    assert large / small == pytest.approx(weights[1] / weights[0])


def test_twice_the_bandwidth_halves_the_time_for_memory_and_for_nothing_else():
    double = DataSheetMachine.of_h100(1, bandwidth=2.0)
    fixed = ONE.hardware.overhead_s
    assert double.pass_s(LLAMA_8B, 1, 8_000) - fixed == pytest.approx((ONE.pass_s(LLAMA_8B, 1, 8_000) - fixed) / 2)
    times = [machine.prefill_s(LLAMA_8B, PREFILL_CHUNK, PREFILL_CHUNK) for machine in (ONE, double)]
    assert times[0] == times[1], "limited by arithmetic"
    fast = FittedMachine(FIT, SMOLLM2_135M, CORES.costs, bandwidth=2.0)
    assert fast.pass_s(SMOLLM2_135M, 1, 500) == pytest.approx(CORES.pass_s(SMOLLM2_135M, 1, 500) / 2)


@pytest.mark.parametrize("machine", [ONE, CORES], ids=["data sheet", "fitted"])
def test_drafts_are_as_long_as_pays_best_and_never_cost_anything(machine):
    rates = (0.0, 0.1, 0.5, 0.9, 1.0)
    times = [decode_s(machine, SMOLLM2_135M, 1_000, 50, acceptance=rate) for rate in rates]
    assert times == sorted(times, reverse=True)
    assert times[-1] * (1 + MAX_DRAFT) > 0.999 * times[0], "at most so many tokens in a pass"


def test_a_batch_shares_the_weights_but_not_the_prompts():
    alone, together = (gpu_seconds(ONE, LLAMA_8B, 8_000, 8_000, 100, batch_size=batch_size) for batch_size in (1, 16))
    assert ONE.prefill_s(LLAMA_8B, 8_000, 8_000) < together < alone
    four = DataSheetMachine.of_h100(4)
    one_token = gpu_seconds(four, LLAMA_8B, 8_000, 8_000, 1)
    assert one_token == pytest.approx(4 * four.prefill_s(LLAMA_8B, 8_000, 8_000)), "four GPUs are paid for"


def test_sessions_that_fit_fill_the_room_beside_the_weights():
    count, page = sessions_that_fit(ONE, LLAMA_8B, 32_000), 16
    pages = h100().num_pages(LLAMA_8B, page)
    assert count * 32_000 <= pages * page < (count + 1) * 32_000
