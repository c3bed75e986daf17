"""The cost table: what was measured at its points, lines between them, and never a token for less than nothing."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minstate import BadValue, CostTable

TABLE = CostTable((1, 4, 8), (0, 100), ((10.0, 13.0, 21.0), (20.0, 26.0, 30.0)), "by hand")


@pytest.mark.parametrize(
    "tokens, context, ms",
    [
        (1, 0, 10), (4, 0, 13), (8, 100, 30), (1, 100, 20),  # what was measured
        (2, 0, 11), (6, 0, 17), (1, 50, 15), (6, 50, 22.5),  # between
        (16, 0, 37), (1, 300, 40), (0, 0, 10), (8, -5, 21),  # beyond: as the last two points go on; never below them
    ],
)  # fmt: skip
def test_between_its_points_a_table_is_linear(tokens, context, ms):
    assert TABLE.at(context)(tokens) == pytest.approx(ms)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_the_tables_that_come_along_more_work_never_costs_less(dtype):
    table = CostTable.default(dtype)
    assert CostTable.default(dtype) is table, "read once"
    for context in (0, 10, 1000, 5000, 20000):
        costs = [table.at(context)(tokens) for tokens in range(1, 700)]
        assert costs[0] > 0 and costs == sorted(costs)
        assert table.at(context + 500)(3) >= table.at(context)(3)


def test_a_table_keeps_its_place_beside_others_in_a_file(tmp_path):
    other = CostTable((1, 2), (0, 1), ((1.0, 1.5), (2.0, 2.5)))
    path = tmp_path / "costs.json"
    TABLE.save(path, "mine")
    other.save(path, "theirs")
    assert (CostTable.load(path, "mine"), CostTable.load(path, "theirs")) == (TABLE, other)
    other.save(path, "mine")
    assert CostTable.load(path, "mine") == other
    with pytest.raises(BadValue, match="only for mine, theirs"):
        CostTable.load(path, "nobody's")
    with pytest.raises(OSError):
        CostTable.load(tmp_path / "none.json", "mine")


@pytest.mark.parametrize(
    "tokens, contexts, ms",
    {
        "no row": ((1, 2), (), ()),
        "one row": ((1, 2), (0,), ((1, 2),)),
        "one column": ((1,), (0, 1), ((1,), (1,))),
        "a row too short": ((1, 2), (0, 1), ((1, 2), (1,))),
        "a row too many": ((1, 2), (0, 1), ((1, 2), (1, 2), (1, 2))),
        "not from one token on": ((2, 3), (0, 1), ((1, 2), (1, 2))),
        "tokens fall": ((1, 3, 2), (0, 1), ((1, 2, 3), (1, 2, 3))),
        "contexts fall": ((1, 2), (1, 0), ((1, 2), (1, 2))),
        "more tokens cost less": ((1, 2), (0, 1), ((2, 1), (2, 2))),
        "more context costs less": ((1, 2), (0, 1), ((2, 2), (1, 2))),
        "free": ((1, 2), (0, 1), ((0, 1), (0, 1))),
        "a number of tokens twice": ((1, 1), (0, 1), ((1, 1), (1, 1))),
        "a context twice": ((1, 2), (0, 0), ((1, 1), (1, 1))),
        "no number": ((1, 2), (0, 1), ((1, math.nan), (1, 1))),
    }.values(),
)
def test_absurd_tables_are_refused(tokens, contexts, ms):
    with pytest.raises(BadValue):
        CostTable(tokens, contexts, ms)


@given(st.integers(1, 12), st.integers(0, 150))
def test_a_table_is_asked_for_one_context_at_a_time(tokens, context):
    """`at` fixes the context: the same as going between the rows at that number of tokens."""
    between = [TABLE.at(at)(tokens) for at in (0, 100)]
    assert TABLE.at(context)(tokens) == pytest.approx(between[0] + (between[1] - between[0]) * context / 100)
