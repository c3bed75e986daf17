"""The stored ablation is read as it was written, and its counts can be computed again."""

import pandas as pd
import pytest

from minstate.lab.bench import ablation_record as record
from minstate.lab.bench.ablation import LADDER, MECHANISMS, configuration_name
from minstate.lab.bench.shapley import subsets


@pytest.fixture(scope="module")
def stored():
    return record.read_ablation()


def test_the_stored_counts_are_those_of_a_stub_model(stored):
    counted = record.count_turns("agentic", LADDER["+ prompt lookup"])
    measured = stored.turns["agentic"]
    assert record.same_counts(counted, measured, "+ prompt lookup")
    assert not record.same_counts(counted, measured, "stateful")


def test_the_ladder_of_a_run_has_no_shares_to_give():
    ladder = record.read_ablation("float32")
    assert not ladder.share_out and set(ladder.turns) == {"agentic", "coding"}
    assert ladder.source.startswith("python -m minstate.lab.bench ablation dtype=float32 only=ladder")


def test_times_faster_is_what_the_table_says(stored):
    row = stored.table.loc[("coding", "+ grammar")]
    found = record.times_faster(stored.turns["coding"], "naive", "+ grammar")
    assert found["whole"] == pytest.approx(row["times faster"], rel=1e-3)
    assert found["median"] == pytest.approx(row["median turn"], rel=1e-3)
    assert found["from"] < found["median"] < found["to"]


def test_twins_do_the_same_work(stored):
    turns = stored.turns["agentic"]
    names = ["state", "state, prompt lookup", "state, grammar", "state, prompt lookup, grammar"]
    assert list(record.twins(turns).index) == names
    spoilt = turns.copy()
    spoilt.loc[spoilt["configuration"] == "state", "prefilled"] += 1
    with pytest.raises(AssertionError, match="the same work"):
        record.twins(spoilt)


def test_seconds_are_those_of_one_repeat(stored):
    turns = stored.turns["agentic"]
    turns = turns[turns["repeat"] == 0]
    twice = pd.concat([turns, turns.assign(repeat=1)])
    assert record.seconds_of_subsets(twice) == pytest.approx(record.seconds_of_subsets(turns))
    whole = stored.table.loc["agentic", "total s"]
    seconds = record.seconds_of_subsets(stored.turns["agentic"])
    assert all(seconds[some] == pytest.approx(whole[configuration_name(some)], rel=1e-3) for some in seconds)


def test_three_ways_to_divide_a_gain_that_two_mechanisms_can_have():
    cost = {
        some: 100.0 - (40 if {"state", "prefix reuse"} & some else 0) - 10 * ("grammar" in some) for some in worlds()
    }
    answers = record.three_ways(cost)
    assert list(answers["alone"]) == [40, 40, 0, 10]
    assert list(answers["shapley"]) == pytest.approx([20, 20, 0, 10])
    assert list(answers["last"]) == [0, 0, 0, 10]


def worlds() -> list[frozenset[str]]:
    return subsets(MECHANISMS)
