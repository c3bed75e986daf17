"""Figures of what drafts cost and gain: the numbers that one counts by hand, a line for each table and chance."""

import pytest
from matplotlib.figure import Figure

from minstate import CostTable
from minstate.lab.figures.draft_costs import (
    break_even,
    cost_figure,
    expected_rates,
    expected_tokens,
    ledger_figure,
    rate_figure,
)

pytestmark = pytest.mark.filterwarnings("error")
FREE = CostTable((1, 64), (0, 64), ((1.0, 1.0), (1.0, 1.0)))
DEAR = CostTable((1, 2, 64), (0, 64), ((10.0, 20.0, 640.0), (10.0, 20.0, 640.0)))


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts if text.get_text()]


def require_labels(figure: Figure) -> None:
    figure.canvas.draw()
    for axes in figure.axes:
        beside = axes.get_shared_y_axes().get_siblings(axes)
        assert axes.get_xlabel() and (any(each.get_ylabel() for each in beside) or not axes.get_yticks().size)


def test_expected_tokens_and_break_even_are_what_one_counts_by_hand():
    assert expected_tokens([]) == 1 and expected_tokens([0.5, 0.5]) == 1.75
    assert break_even(DEAR.at(0), 1) == pytest.approx(1) and break_even(FREE.at(0), 1) == pytest.approx(0, abs=1e-9)
    assert break_even(lambda tokens: 10 + 4 * (tokens - 1), 1) == pytest.approx(0.4)
    assert expected_rates(FREE.at(0), 0.5, 2) == [1, 1.5, 1.75] and expected_rates(DEAR.at(0), 0.5, 1) == [1, 0.75]


def test_costs_and_rates_have_a_line_for_each_table_and_chance():
    figure = cost_figure({"free": FREE, "dear": DEAR}, 10)
    require_labels(figure)
    assert [line.get_label() for line in figure.axes[0].lines] == ["free", "dear"]
    assert {(line.get_marker(), line.get_linestyle()) for line in figure.axes[0].lines} == {("o", "-"), ("s", "--")}
    figure = rate_figure({"free": FREE, "dear": DEAR}, 10, [0.5, 0.9], longest=7)
    require_labels(figure)
    assert texts(figure) == ["7", "7", "0", "0"], "the best number of guesses, at each curve"
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["free", "dear"]


def test_a_ledger_has_its_bound():
    figure = ledger_figure({"gains": {"one": ([1, 2], [0.01, -0.5])}, "losses": {"two": ([1, 2], [0, 0.02])}}, 0.03)
    require_labels(figure)
    assert all("3 %" in text for text in texts(figure))
    assert [list(axes.lines[0].get_ydata()) for axes in figure.axes] == [[1, -50], [0, 2]]
