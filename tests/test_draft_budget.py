"""What a draft costs, what it is worth, and what a session may lose on it."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minstate import BadValue, BrokenInvariant, CostTable
from minstate.draft_budget import REGRET, Allotment, Ledger, Share, allot

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


RISING = st.lists(st.floats(0, 3), min_size=9, max_size=9).map(lambda steps: tuple(itertools.accumulate([1.0, *steps])))


@given(
    ms=RISING,
    chances=st.lists(st.lists(st.floats(0.05, 0.999), max_size=4), min_size=1, max_size=3),
    prefill=st.integers(0, 5),
    room=st.integers(0, 9),
    more=st.lists(st.integers(0, 2), min_size=3, max_size=3),
)
def test_what_is_drafted_gives_the_most_tokens_per_cost(ms, chances, prefill, room, more):
    """Against all ways to draft, where no ledger stands in the way."""
    table = CostTable((1, 2, 3, 4, 5, 6, 8, 10, 12, 20), (0, 1000), (ms, tuple(2 * each for each in ms)))
    shares = [Share(10 * place, 1 + more[place], True, Ledger(1e12), each) for place, each in enumerate(chances)]
    if prefill:
        shares.append(Share(0, prefill, False, Ledger(), []))
    cost = table.at(sum(share.context + share.tokens for share in shares))
    total, producing = sum(share.tokens for share in shares), len(chances)

    def rate(counts):
        worth = sum(
            torch.tensor(each[: place + 1], dtype=torch.float64).prod().item()
            for each, count in zip(chances, counts, strict=False)
            for place in range(count)
        )
        return (producing + worth) / (cost(producing) + cost(total + sum(counts)) - cost(total))

    allotment = allot(shares, table, room)
    ways = itertools.product(*(range(len(each) + 1) for each in chances))
    best = max(rate(way) for way in ways if sum(way) <= room)
    assert sum(allotment.counts) <= room and rate(allotment.counts) == pytest.approx(best, rel=1e-9)
    assert sum(allotment.prices) == pytest.approx(cost(total + sum(allotment.counts)) - cost(total), abs=1e-9)
    assert allotment.base_ms == pytest.approx(cost(total))
    assert allotment.token_ms == pytest.approx(cost(producing) / producing)


def test_a_ledger_without_means_allows_no_risk_and_every_certainty():
    table = CostTable((1, 2, 64), (0, 10), ((10.0, 11.0, 73.0), (10.0, 11.0, 73.0)))

    def count(chances, base_ms):
        return allot([Share(5, 1, True, Ledger(base_ms), chances)], table, 99).counts[0]

    sure, likely = 1.0, 0.999
    assert count([likely] * 3, base_ms=0) == 0
    assert count([likely] * 3, base_ms=1 / REGRET) == 1, "what may be lost pays for one"
    assert count([likely] * 3, base_ms=3 / REGRET) == 3
    assert count([sure] * 5, base_ms=0) == 5
    assert count([sure] * 2 + [likely] * 30, base_ms=0) == 2 + 18, "two passes saved for certain pay for 20 tokens"
    assert count([likely] + [sure] * 2, base_ms=0) == 0, "nor is certain what is behind a risk"


def test_a_forward_pass_is_charged_to_the_ledgers_of_the_sequences_that_took_part():
    table = CostTable((1, 10), (0, 10), ((10.0, 19.0), (10.0, 19.0)))
    ledgers = [Ledger(1e6), Ledger(1e6)]
    shares = [Share(0, 1, True, ledgers[0], [0.9] * 3), Share(0, 3, False, ledgers[1], [])]
    allotment = allot(shares, table, 9)
    assert allotment == Allotment(counts=[3, 0], prices=[3.0, 0.0], base_ms=13.0, token_ms=10.0)
    allotment.charge(shares, [2, 0])
    assert [ledger.base_ms - 1e6 for ledger in ledgers] == pytest.approx([13 / 4, 13 * 3 / 4])
    assert [ledger.regret_ms for ledger in ledgers] == [3 - 10, 0]
    ledgers[1].regret_ms = 1.01 * REGRET * ledgers[1].base_ms
    with pytest.raises(BrokenInvariant):
        ledgers[1].check()


def test_a_cap_on_sequences_ends_drafting_by_hand():
    table = CostTable((1, 64), (0, 10), ((10.0, 10.1), (10.0, 10.1)))
    shares = [Share(0, 1, True, Ledger(1e6), [0.9] * 3) for _ in range(2)]
    assert allot(shares, table, 9, max_sequences=1).counts == [0, 0]
    assert allot(shares, table, 9, max_sequences=2).counts == [3, 3]


def test_the_more_sequences_run_the_less_is_drafted():
    """A token costs a tenth of a pass: what saves one alone saves nothing where the pass is shared by many."""
    table = CostTable((1, 2, 64), (0, 10000), ((100.0, 110.0, 730.0), (100.0, 110.0, 730.0)))
    drafted = []
    for sequences in (1, 2, 4, 8, 16, 32):
        shares = [Share(0, 1, True, Ledger(1e9), [0.75] * 31) for _ in range(sequences)]
        drafted.append(sum(allot(shares, table, 10**6).counts) / sequences)
    assert drafted == sorted(drafted, reverse=True) and drafted[0] > drafted[2] > drafted[4] > drafted[5] >= 0
