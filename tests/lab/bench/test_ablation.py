"""Every combination of mechanisms does exactly the work that it should, on turns of a stub model."""

from itertools import pairwise

import pandas as pd
import pytest

from minstate.draft_budget import CostTable
from minstate.lab.bench import ablation
from minstate.lab.bench.shapley import subsets
from minstate.lab.engines.stub_model import stub_engine


@pytest.fixture(scope="module")
def turns():
    first, costs = stub_engine(num_pages=1), CostTable.default("float32")
    engines = {
        ablation.configuration_name(mechanisms): ablation.engine_with(mechanisms, first, costs)
        for mechanisms in [*subsets(ablation.MECHANISMS), ablation.LADDER["+ 8-bit K/V"]]
    }
    return pd.concat(
        ablation.measure_turns(engines, "agentic", repeat, same=True).assign(repeat=repeat) for repeat in (0, 1)
    )


def test_each_mechanism_saves_what_it_is_there_for(turns):
    table = ablation.ladder(turns)
    whole = turns[turns["configuration"] == "naive"]["n"].sum()
    for mechanisms in [*subsets(ablation.MECHANISMS), ablation.LADDER["+ 8-bit K/V"]]:
        row = table.loc[ablation.configuration_name(mechanisms)]
        if ablation.STATE in mechanisms:  # what is new, and nothing else
            assert row["prefilled"] == row["delta"] and row["recomputed"] == 0
        elif ablation.PREFIX in mechanisms:  # the partly filled last page is not shared
            assert row["delta"] < row["prefilled"] < row["delta"] + 16 * turns["turn"].max()
        else:
            assert row["prefilled"] == whole
        if ablation.FORCED in mechanisms:
            assert row["forced"] > 0 and row["accepted"] >= row["forced"]
        else:
            assert row["forced"] == 0
        if not mechanisms & {ablation.LOOKUP, ablation.FORCED}:
            assert row["drafted"] == 0 and row["passes"] == row["generated"]
        else:
            assert row["generated"] - row["accepted"] == row["passes"]
    rising = ["stateful", "prefix reuse, state, grammar", "+ prompt lookup", "+ grammar"]
    assert list(table.loc[rising, "passes"]) == sorted(table["passes"].unique(), reverse=True)


def test_the_ladder_without_its_foot_is_repeated_and_compared_with_what_ran_once(turns):
    repeats = turns.groupby("configuration")["repeat"].nunique()
    assert set(repeats.index[repeats == 2]) == set(ablation.LADDER) - {"naive"} and (repeats >= 1).all()
    wide = ablation.seconds_by_turn(turns)
    assert list(wide.loc[0, "naive"]) == list(wide.loc[1, "naive"]) and not wide.isna().any(axis=None)
    assert list(wide.loc[0, "stateful"]) != list(wide.loc[1, "stateful"])


def test_the_shares_add_up_to_what_all_mechanisms_save(turns):
    table = ablation.ladder(turns)
    for unit in ("forwarded", "passes"):
        saved = sum(row["saved"] for row in ablation.shapley_shares(turns) if row["unit"] == unit)
        assert saved == pytest.approx(table.loc["naive", unit] - table.loc["+ grammar", unit])


def test_every_combination_of_mechanisms_has_a_name_of_its_own():
    names = [ablation.configuration_name(mechanisms) for mechanisms in subsets(ablation.MECHANISMS)]
    assert len(set(names)) == 2 ** len(ablation.MECHANISMS) and set(ablation.LADDER) - {*names} == {"+ 8-bit K/V"}
    assert all(smaller < larger for smaller, larger in pairwise(ablation.LADDER.values()))
