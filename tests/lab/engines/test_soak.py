"""The soak test: a run with faults gives the outputs of an undisturbed one, and a broken engine is noticed."""

import json

import pytest

from minstate.lab.engines.faults import SEAMS
from minstate.lab.engines.small_engine import small_engine
from minstate.lab.engines.soak import RATES, draw_rounds, play_rounds, soak


@pytest.mark.parametrize("seed, kv_dtype", [(0, None), (1, None), (2, None), (3, None), (4, "int8")])
def test_a_soak_with_faults_gives_the_outputs_of_the_undisturbed_run(seed, kv_dtype):
    outcome = soak(120, seed, kv_dtype)
    assert set(outcome.faults) == set(SEAMS) and outcome.failed and outcome.preempted
    assert outcome.recomputed and outcome.promoted
    assert json.loads(json.dumps(outcome.counts()))["faults"] == outcome.faults
    assert outcome.accepted and {"fork", "rollback", "close", "expect", "file"} <= set(outcome.happenings)


def test_a_soak_notices_a_lost_page_and_another_token():
    rounds = draw_rounds(40)
    undisturbed = play_rounds(rounds, small_engine(), {})
    assert not undisturbed.failed and not undisturbed.faults and undisturbed.lost_pages == 0
    e = small_engine()
    e.pool.allocator.release = lambda pages: None
    with pytest.raises(AssertionError):
        play_rounds(rounds, e, RATES)
    assert play_rounds(rounds, small_engine(seed=1), {}).outputs != undisturbed.outputs
