"""Every combination of mechanisms does the work that it should, and no other, on turns without a model."""

import pytest
from minstate.costs import CostTable

from minstate.lab.bench import ablation
from minstate.lab.bench.shapley import subsets
from minstate.lab.engines.stub_model import stub_engine


@pytest.fixture(scope="module")
def turns():
    first, costs = stub_engine(num_pages=1), CostTable.default("float32")
    engines = {
        ablation.name_of(some): ablation.engine_with(some, first, costs) for some in subsets(ablation.MECHANISMS)
    }
    return ablation.measure(engines, "agentic", 1, same=True)


def test_each_mechanism_saves_what_it_is_there_for(turns):
    table = ablation.ladder(turns)
    whole = turns[turns["configuration"] == "naive"]["n"].sum()
    for some in subsets(ablation.MECHANISMS):
        row = table.loc[ablation.name_of(some)]
        if ablation.STATE in some:  # what is new, and nothing else
            assert row["prefilled"] == row["delta"] and row["recomputed"] == 0
        elif ablation.PREFIX in some:  # the end of the last page is nobody's
            assert row["delta"] < row["prefilled"] < row["delta"] + 16 * turns["turn"].max()
        else:
            assert row["prefilled"] == whole
        if ablation.FORCED in some:
            assert row["forced"] > 0 and row["accepted"] >= row["forced"]
        else:
            assert row["forced"] == 0
        if not some & {ablation.LOOKUP, ablation.FORCED}:
            assert row["drafted"] == 0 and row["passes"] == row["generated"]
        else:
            assert row["generated"] - row["accepted"] == row["passes"]
    rising = ["stateful", "prefix reuse, state, grammar", "+ prompt lookup", "+ grammar"]
    assert list(table.loc[rising, "passes"]) == sorted(table["passes"].unique(), reverse=True)


def test_the_shares_add_up_to_what_all_mechanisms_save(turns):
    table = ablation.ladder(turns)
    for unit in ("forwarded", "passes"):
        saved = sum(row["saved"] for row in ablation.shares(turns) if row["unit"] == unit)
        assert saved == pytest.approx(table.loc["naive", unit] - table.loc["+ grammar", unit])
