"""Figures of too little memory: the pages that sessions hold, the histories that are found, the cost of each policy."""

from itertools import product

import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from minstate.lab.figures.pressure import (
    TENANTS,
    Visit,
    fewest_recomputations,
    pages_held_figure,
    policy_figure,
    probe_figure,
    recomputations,
    replay_order,
    residency_figure,
    tiers_figure,
)


def oldest(resident, future):
    return resident[0]


def newest(resident, future):
    return resident[-1]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_an_order_is_replayed_with_the_victims_that_a_rule_names():
    visits = replay_order("abcab", 2, oldest)
    assert visits[2] == Visit("c", False, frozenset("bc"))
    assert [visit.found for visit in visits] == [False] * 5 and recomputations(visits) == 2
    assert [visit.found for visit in replay_order("abcab", 2, newest)] == [False, False, False, True, False]


def test_a_rule_sees_the_order_of_last_use_and_the_turns_to_come():
    asked = []

    def ask(resident, future):
        asked.append((resident, future))
        return resident[0]

    replay_order("abac", 2, ask)
    assert asked == [(("b", "a"), "c")]


def test_a_memory_that_holds_all_histories_loses_none():
    assert recomputations(replay_order("abcabc", 3, oldest)) == 0 == fewest_recomputations("abcabc", 3)


@pytest.mark.parametrize("capacity", [1, 2, 3])
def test_no_rule_beats_the_least_cost(capacity):
    for order in product("abc", repeat=6):
        least = fewest_recomputations(order, capacity)
        assert all(least <= recomputations(replay_order(order, capacity, rule)) for rule in (oldest, newest))
    assert fewest_recomputations("abcabc", 1) == 3, "each turn evicts the other two"


def test_residency_tints_the_sessions_in_memory_and_marks_every_turn():
    visits = replay_order("abcab", 2, oldest)
    figure = residency_figure({"LRU": visits, "MRU": replay_order("abcab", 2, newest)})
    upper, lower = figure.axes
    assert "LRU: 2 turns" in upper.get_title(loc="left") and "MRU: 1 turn recomputes" in lower.get_title(loc="left")
    tinted = [patch for patch in upper.patches if isinstance(patch, Rectangle)]
    assert len(tinted) == sum(len(visit.resident) for visit in visits)
    marks = [line for line in upper.lines if len(line.get_xdata())]
    assert [line.get_xdata()[0] for line in marks] == [1, 2, 3, 4, 5]
    assert {line.get_marker() for line in marks} == {"|", "X"}
    assert "history recomputed" in legend(figure) and "turn" in lower.get_xlabel()


def test_bars_stack_up_to_the_pages_that_are_held_and_say_how_many_turns_are_done():
    panels = {"pinned": [({"a": 2}, 1), ({"a": 2, "b": 3}, 1)], "given up": [({"b": 1}, 2), ({"b": 0}, 4)]}
    figure = pages_held_figure(panels, capacity=6, turns=4)
    left, right = figure.axes
    assert max(bar.get_y() + bar.get_height() for bar in left.patches) == 5
    assert [axes.get_title(loc="left") for axes in (left, right)] == ["pinned", "given up"]
    assert legend(figure) == ["a", "b"] and left.get_ylabel() == "pages held"
    assert [text.get_text() for text in left.texts][:2] == ["1", "1"], "the turns done stand above the bars"
    above, ended, _ = [text.get_text() for text in right.texts]
    assert above == "2" and ended.startswith("all 4 turns"), "an empty round says why it is empty"


def test_policies_are_drawn_from_the_ample_pool_to_the_small_one():
    rows = [
        (share, name, cost) for share, cost in ((0.5, 0.2), (1.0, 0.0)) for name in ("LRU", "hints", "clairvoyance")
    ]
    table = pd.DataFrame(rows, columns=["pool", "policy", "recomputed share"]).set_index(["pool", "policy"])
    (axes,) = policy_figure(table).axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.0, 0.2]] * 3
    assert axes.get_xlim()[0] > axes.get_xlim()[1], "the pool shrinks from left to right"
    assert len({(line.get_marker(), line.get_linestyle()) for line in axes.lines}) == 3, "for a grey printer"


def test_every_probe_is_a_point_and_the_median_a_line():
    rows = [(name, where, 5, ms) for name in ("Heron", "Robin") for where in TENANTS for ms in (10.0, 30.0, 11.0)]
    figure = probe_figure(pd.DataFrame(rows, columns=["guess", "where", "shared", "ms"]))
    _, right = figure.axes
    points = [line for line in right.lines if line.get_linestyle() == "None"]
    assert sum(len(line.get_xdata()) for line in points) == len(rows)
    assert {line.get_xdata()[0] for line in right.lines if line not in points} == {11.0}
    assert legend(figure) == list(TENANTS) and "milliseconds" in right.get_xlabel()


def test_the_bars_of_a_history_add_up_to_all_of_it():
    rows = pd.DataFrame(
        [
            {"share": share, "tier": tier, "resident": 50, "promoted": promoted, "recomputed": 50 - promoted}
            for tier, promoted in (("no tier", 0), ("host memory", 40))
            for share in (1.0, 0.25)
        ]
    )
    figure = tiers_figure(rows)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["no tier", "host memory"]
    for axes in figure.axes:
        tops = [bar.get_y() + bar.get_height() for bar in axes.patches]
        assert tops[-2:] == pytest.approx([1, 1]) and [tick.get_text() for tick in axes.get_xticklabels()] == [
            "100 %",
            "25 %",
        ]
    assert legend(figure) == ["still in the pool", "brought back from host memory", "computed again"]
