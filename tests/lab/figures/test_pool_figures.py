"""Figures of pages: every page once, with the letters of its owners and how full it is."""

import pytest
from matplotlib.figure import Figure

from minstate.lab.figures.pool import (
    PoolState,
    batch_figure,
    memory_use,
    page_table_figure,
    pool_map,
    pool_strip,
    run_costs,
)
from minstate.lab.notebook.widgets import stepper
from minstate.paged_kv import KVPool, PageTable
from minstate.ragged_batch import RaggedBatch
from minstate.sequence import Sequence


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts if text.get_text()]


@pytest.fixture
def tables() -> dict[str, PageTable]:
    """A holds pages 0 and 1, the second half full; B is its fork."""
    parent = PageTable(KVPool(num_layers=1, num_kv_heads=1, head_dim=1, num_pages=6, page_size=4))
    parent.append(6)
    parent.commit()
    return {"A": parent, "B": parent.fork()}


def test_a_state_is_a_copy(tables):
    state = PoolState.of(tables)
    tables["A"].append(9)
    assert state.tables["A"] == ((0, 1), 6)


def test_a_state_knows_owners_fill_and_runs(tables):
    state = PoolState.of(tables)
    assert [state.owners(page) for page in (0, 1, 2)] == [["A", "B"], ["A", "B"], []]
    assert [state.filled(page) for page in (0, 1, 2)] == [4, 2, 0]
    tables["B"].truncate(0)
    assert PoolState.of(tables).summary() == {"A": "A: 6 tokens, 2 pages, 1 run"}


def test_a_full_page_is_not_called_half_full_by_an_owner_with_fewer_tokens(tables):
    tables["B"].truncate(1)
    assert PoolState.of(tables).filled(0) == 4


def test_the_map_names_every_page_its_owners_and_what_is_only_partly_filled(tables):
    tables["B"].append(1)  # a page of its own
    figure = pool_map(PoolState.of(tables, "B writes"), columns=3)
    shown = texts(figure)
    assert sorted(text for text in shown if text.isdigit()) == list("012345")
    assert shown.count("AB") == 1 and shown.count("A") == 1 and shown.count("B") == 1
    assert sorted(text for text in shown if "/" in text) == ["2/4", "3/4"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[0] == "A: 6 tokens, 2 pages, 1 run" and legend[-1] == "free: 3 pages"
    assert figure.axes[0].get_title(loc="left") == "B writes"


def test_a_strip_has_a_panel_for_each_state(tables):
    states = [PoolState.of(tables, "first"), PoolState.of(tables, "second"), PoolState.of(tables, "third")]
    assert [axes.get_title(loc="left") for axes in pool_strip(states).axes] == ["first", "second", "third"]


def test_a_slider_over_maps_draws_another_figure_when_moved(tables, capsys):
    states = [PoolState.of(tables)]
    tables["B"].truncate(0)
    states.append(PoolState.of(tables))
    box = stepper(lambda step: pool_map(states[step]), len(states))
    (_, slider), picture = box.children[0].children, box.children[1]
    before = picture.value
    slider.value = 1
    assert picture.value != before and capsys.readouterr().out == ""


def test_a_page_table_figure_shows_each_token_where_it_is(tables):
    shown = texts(page_table_figure(PoolState.of({"A": tables["A"]})))
    assert [f"A{i}" in shown for i in range(7)] == [True] * 6 + [False]
    assert "page 5" in shown and "slots 20–23" in shown and "tokens 4–5" in shown


def test_a_batch_figure_has_a_column_for_each_query_token():
    pool = KVPool(num_layers=1, num_kv_heads=1, head_dim=1, num_pages=6, page_size=4)
    first, second = Sequence(pool), Sequence(pool)
    first.log, second.log = [70, 71, 72], [90, 91]
    batch = RaggedBatch.build([first.chunk(3), second.chunk(1)])
    shown = texts(batch_figure(batch, ["prefill", "chunk"], list("abcd")))
    assert {"prefill", "chunk", "a", "d", "72", "90"} <= set(shown)
    assert shown.count("wanted") == 1, "only the first log ends in this batch"


def test_memory_use_draws_the_same_axes_for_each_way():
    rows = {"buffers": [(1, 2, 3, 4), (2, 2, 2, 4)], "pages": [(1, 1, 0, 8), (2, 0, 0, 8)]}
    left, right = memory_use(rows).axes
    assert left.get_title(loc="left") == "buffers" and right.get_title(loc="left") == "pages"
    assert left.get_ylim() == right.get_ylim() == (0, 10) and "slots" in left.get_ylabel()


def test_run_costs_draws_medians_over_runs():
    figure = run_costs({"paged": {1: [3.0, 1.0, 2.0], 4: [5.0, 5.0, 5.0]}}, floor=[1.0])
    floor, line = figure.axes[0].lines
    assert list(line.get_xdata()) == [1, 4] and list(line.get_ydata()) == [2.0, 5.0]
    assert floor.get_label() == "contiguous tensors, no pages"


def test_run_costs_draws_a_line_for_each_way():
    ways = {"in parts": {1: [1.0], 4: [3.0]}, "gathered": {1: [2.0], 4: [2.0]}, "both": {1: [1.0], 4: [2.0]}}
    _, *lines = run_costs(ways, floor=[1.0]).axes[0].lines
    assert [line.get_label() for line in lines] == list(ways)
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == 3
